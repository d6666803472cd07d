"""Without these, a region could lose its neighbours as positives, or padding sentences could count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.local_intra_sample import local_intra_sample, spatial_positives
from medvlp_jax.losses.nt_xent import nt_xent
from medvlp_jax.losses.uniformity import alignment, local_uniformity, uniformity

B, K, D = 4, 6, 5
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(B, K, D)).astype(np.float32)
SECOND = RNG.normal(size=(B, K, D)).astype(np.float32)
WEIGHTS = RNG.random((B, K)).astype(np.float32)
COUNTS = (6, 3, 1, 4)
MASK = (np.arange(K) < np.array(COUNTS)[:, None]).astype(np.float32)
ROWS = np.array([1, 0, 1, 1], np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("relative", "smooth"), [(True, True), (True, False), (False, True)])
def test_spatial_positives_are_those_of_a_loop(relative, smooth) -> None:
    threshold = 0.4 if relative else 1.5
    got = spatial_positives(3, 4, threshold=threshold, relative=relative, smooth=smooth, decay=2.0)
    for k in range(12):
        for m in range(12):
            gap = math.dist(divmod(k, 4), divmod(m, 4)) / (5.0 if relative else 1.0)
            wanted = (math.exp(-2 * gap) if smooth else 1.0) if gap <= threshold else 0.0
            assert got[k, m] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_local_contrast_is_that_of_a_loop(masked, smooth) -> None:
    positives = spatial_positives(2, 3) if smooth else np.eye(K)
    wanted = [0.0, 0.0]
    samples = [i for i in range(B) if not masked or ROWS[i]]
    for way, (x, y) in enumerate(((FIRST, SECOND), (SECOND, FIRST))):
        for i in samples:
            count = COUNTS[i] if masked else K
            a, b, w = unit(x[i, :count]), unit(y[i, :count]), WEIGHTS[i, :count]
            for k in range(count):
                scores = [float(a[k] @ b[m]) / 0.2 for m in range(count)]
                total = sum(math.exp(s) for s in scores)
                near = positives[k, :count] / positives[k, :count].sum()
                entropy = -sum(p * (s - math.log(total)) for p, s in zip(near, scores, strict=True))
                wanted[way] += w[k] / w.sum() * entropy / len(samples)
    got = local_intra_sample(
        FIRST,
        SECOND,
        positives=positives if smooth else None,
        weights=WEIGHTS,
        temperature=0.2,
        mask=MASK if masked else None,
        example_mask=ROWS if masked else None,
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_equal_elements_give_the_log_of_their_number() -> None:
    same = np.ones((B, K, D), np.float32)
    wanted = np.mean([math.log(n) for n in COUNTS])
    got = local_intra_sample(same, same, positives=spatial_positives(2, 3), mask=MASK)
    np.testing.assert_allclose(got, [wanted, wanted], rtol=1e-5)


def test_padding_elements_change_nothing() -> None:
    first, second = FIRST.copy(), SECOND.copy()
    first[MASK == 0], second[MASK == 0] = 7.0, -3.0
    for loss in (
        lambda x, y: np.stack(local_intra_sample(x, y, mask=MASK, weights=WEIGHTS)),
        lambda x, y: alignment(x, y, mask=MASK),
        lambda x, y: local_uniformity(x, MASK) + local_uniformity(y, MASK),
    ):
        np.testing.assert_allclose(loss(first, second), loss(FIRST, SECOND), rtol=1e-6)


@pytest.mark.parametrize("same_modality", [False, True])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_nt_xent_is_that_of_a_loop(same_modality, rows) -> None:
    a, b = unit(FIRST[:, 0]), unit(SECOND[:, 0])
    real = [i for i in range(B) if rows is None or rows[i]]
    wanted = [0.0, 0.0]
    for way, (x, y) in enumerate(((a, b), (b, a))):
        for i in real:
            candidates = [y[j] for j in real]
            if same_modality:
                candidates += [x[j] for j in real if j != i]
            total = sum(math.exp(float(x[i] @ c) / 0.3) for c in candidates)
            wanted[way] -= (float(x[i] @ y[i]) / 0.3 - math.log(total)) / len(real)
    got = nt_xent(a, b, temperature=0.3, same_modality=same_modality, example_mask=rows)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_that_of_a_loop(alpha) -> None:
    a, b = unit(FIRST), unit(SECOND)
    rows = [np.linalg.norm(a[i, 0] - b[i, 0]) ** alpha for i in range(B) if ROWS[i]]
    got = alignment(FIRST[:, 0], SECOND[:, 0], alpha=alpha, example_mask=ROWS)
    assert float(got) == pytest.approx(np.mean(rows), rel=1e-5)
    samples = [
        np.mean([np.linalg.norm(a[i, k] - b[i, k]) ** alpha for k in range(COUNTS[i])])
        for i in range(B)
    ]
    got = alignment(FIRST, SECOND, alpha=alpha, mask=MASK)
    assert float(got) == pytest.approx(np.mean(samples), rel=1e-5)
    assert float(alignment(FIRST, FIRST, alpha=alpha)) == 0


def spread(x: np.ndarray, t: float) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    if not pairs:
        return 0.0
    return math.log(np.mean([math.exp(-t * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))


@pytest.mark.parametrize("t", [2.0, 0.5])
def test_uniformity_is_that_of_a_loop(t) -> None:
    x = unit(FIRST[:, 0])
    got = uniformity(FIRST[:, 0], t=t, example_mask=ROWS)
    assert float(got) == pytest.approx(spread(x[ROWS > 0], t), rel=1e-4)
    samples = [spread(unit(FIRST[i, : COUNTS[i]]), t) for i in range(B)]
    got = local_uniformity(FIRST, MASK, t=t)
    assert float(got) == pytest.approx(np.mean(samples), rel=1e-4)


def test_uniformity_of_opposite_and_of_equal_points() -> None:
    assert float(uniformity(np.array([[1.0, 0], [-1, 0]]), t=2.0)) == pytest.approx(-8)
    assert float(uniformity(np.ones((5, 3)))) == pytest.approx(0, abs=1e-6)
