"""Without these, correlations could run over the wrong axis or count padded rows."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp_jax.losses.redundancy import (
    barlow_twins,
    cosine_alignment,
    cross_lingual_features,
    cross_lingual_instances,
    identity_gap,
    orthogonality,
    standardise,
    vicreg,
)

B, D = 6, 4
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, B, D)).astype(np.float32)
ROWS = np.array([1, 1, 0, 1, 1, 0], np.float32)


def real_rows(masked: bool) -> list[int]:
    return [i for i in range(B) if not masked or ROWS[i]]


def gap(table, weight: float) -> float:
    total = 0.0
    for i in range(len(table)):
        for j in range(len(table)):
            total += (1 - table[i][j]) ** 2 if i == j else weight * table[i][j] ** 2
    return total


def columns(x, rows) -> list[np.ndarray]:
    return [np.array([x[i, d] for i in rows], np.float64) for d in range(D)]


def mask_of(masked: bool):
    return ROWS if masked else None


masks = pytest.mark.parametrize("masked", [False, True])


def test_identity_gap_leaves_rows_out() -> None:
    matrix = RNG.normal(size=(3, 3))
    assert float(identity_gap(matrix, 0.2)) == pytest.approx(gap(matrix, 0.2), rel=1e-5)
    kept = matrix[np.ix_([0, 2], [0, 2])]
    got = identity_gap(matrix, 0.2, np.array([1, 0, 1]))
    assert float(got) == pytest.approx(gap(kept, 0.2), rel=1e-5)
    assert float(identity_gap(np.eye(4), 0.3)) == 0


@masks
def test_barlow_is_that_of_a_loop(masked) -> None:
    rows = real_rows(masked)
    a, b = columns(X, rows), columns(Y, rows)
    table = [[float(np.corrcoef(u, v)[0, 1]) for v in b] for u in a]
    got = barlow_twins(X, Y, off_weight=0.1, example_mask=mask_of(masked))
    assert float(got) == pytest.approx(gap(table, 0.1), rel=1e-3)
    features = cross_lingual_features(X, Y, off_weight=0.1, example_mask=mask_of(masked))
    assert float(features) == pytest.approx(gap(table, 0.1) / (2 * D), rel=1e-3)


@masks
def test_released_features_are_those_of_a_loop(masked) -> None:
    rows = real_rows(masked)
    table = [[u @ v / len(rows) for v in columns(Y, rows)] for u in columns(X, rows)]
    got = cross_lingual_features(
        X, Y, off_weight=0.1, variant="released", example_mask=mask_of(masked)
    )
    assert float(got) == pytest.approx(gap(table, 0.1) / 4 / D, rel=1e-5)


@masks
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_instances_are_those_of_a_loop(masked, variant) -> None:
    rows = real_rows(masked)
    n = len(rows)
    table = [[float(X[i] @ Y[j]) for j in rows] for i in rows]
    if variant == "paper":
        size = [[np.linalg.norm(X[i]) * np.linalg.norm(Y[j]) for j in rows] for i in rows]
        wanted = gap(np.array(table) / size, 0.1) / (2 * n)
    else:
        wanted = gap(np.array(table) / n, 0.1) / 2 / n / 100
    got = cross_lingual_instances(
        X, Y, off_weight=0.1, variant=variant, example_mask=mask_of(masked)
    )
    assert float(got) == pytest.approx(wanted, rel=1e-5)


@masks
def test_vicreg_is_that_of_a_loop(masked) -> None:
    rows = real_rows(masked)
    wanted = 2.0 * np.mean([np.sum((X[i] - Y[i]) ** 2) for i in rows])
    for x in (X, Y):
        table = np.cov(np.array(columns(x, rows)))
        wanted += 3.0 * np.mean([max(0, 1.5 - np.sqrt(table[d, d] + 1e-4)) for d in range(D)])
        off = [table[d, e] ** 2 for d in range(D) for e in range(D) if d != e]
        wanted += 0.5 * sum(off) / D
    got = vicreg(
        X,
        Y,
        invariance_weight=2.0,
        variance_weight=3.0,
        covariance_weight=0.5,
        target=1.5,
        example_mask=mask_of(masked),
    )
    assert float(got) == pytest.approx(wanted, rel=1e-4)


@masks
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_mflag_is_that_of_a_loop(masked, variant) -> None:
    rows = real_rows(masked)
    options = dict(variant=variant, example_mask=mask_of(masked))
    factor = 0.5 if variant == "released" else 1.0
    for denominator in (None, 9.0):
        n = denominator or len(rows)
        table = [[u @ v / n for v in columns(X, rows)] for u in columns(X, rows)]
        got = orthogonality(X, off_weight=0.2, denominator=denominator, **options)
        assert float(got) == pytest.approx(factor * gap(table, 0.2), rel=1e-5)
    cosines = [X[i] @ Y[i] / np.linalg.norm(X[i]) / np.linalg.norm(Y[i]) for i in rows]
    wanted = np.mean([2 - 2 * c for c in cosines]) / factor
    assert float(cosine_alignment(X, Y, **options)) == pytest.approx(wanted, rel=1e-5)


def test_standardised_features_have_mean_0_and_variance_1() -> None:
    x = np.asarray(standardise(100 * X + 3, ROWS))
    np.testing.assert_allclose(x[ROWS > 0].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x[ROWS > 0].var(axis=0), 1, rtol=1e-3)
    np.testing.assert_array_equal(x[ROWS == 0], 0)


def test_equal_views_without_redundancy_cost_nothing() -> None:
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    assert float(barlow_twins(signs, signs)) == pytest.approx(0, abs=1e-6)
    assert float(orthogonality(signs)) == pytest.approx(0, abs=1e-6)
    assert float(vicreg(signs, signs)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_alignment(signs, 3 * signs)) == pytest.approx(0, abs=1e-6)
