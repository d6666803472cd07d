"""Without these, prototype codes could be unbalanced, leak gradient or give mass to padding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.prototype import prototype_alignment, sinkhorn

B, D, K = 6, 5, 4
RNG = np.random.default_rng(0)


def unit(*shape: int) -> np.ndarray:
    x = RNG.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


IMAGE, TEXT, TABLE = unit(B, D), unit(B, D), unit(K, D)


def sinkhorn_loop(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    plan = np.exp(scores.astype(np.float64) / epsilon)
    plan /= plan.sum()
    rows, count = plan.shape
    for _ in range(iterations):
        for k in range(count):
            plan[:, k] /= plan[:, k].sum() * count
        for i in range(rows):
            plan[i] /= plan[i].sum() * rows
    return plan * rows


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [0, 2, 5]])
def test_sinkhorn_loop(iterations: int, rows: list[int]) -> None:
    scores = IMAGE @ TABLE.T
    mask = np.isin(np.arange(B), rows).astype(np.float32)
    codes = np.asarray(sinkhorn(scores, iterations=iterations, example_mask=mask))
    np.testing.assert_allclose(
        codes[rows], sinkhorn_loop(scores[rows], 0.05, iterations), atol=1e-5
    )
    np.testing.assert_array_equal(codes[mask == 0], 0)


def test_sinkhorn_balances_prototypes() -> None:
    scores = RNG.normal(size=(400, 5)).astype(np.float32)
    codes = sinkhorn(scores, epsilon=0.5, iterations=50)
    np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(axis=0), 400 / 5, rtol=1e-3)


def test_equal_scores_are_spread_evenly() -> None:
    np.testing.assert_allclose(sinkhorn(np.full((B, K), 0.3)), 1 / K, rtol=1e-5)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores = IMAGE @ TABLE.T
    np.testing.assert_allclose(sinkhorn(scores + 30), sinkhorn(scores), atol=1e-4)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [0, 2, 5]])
def test_loss_loop(rows: list[int]) -> None:
    mask = np.isin(np.arange(B), rows).astype(np.float32)
    scores = [(x @ TABLE.T)[rows] for x in (IMAGE, TEXT)]
    total = 0.0
    for codes_from, predicted_from in (scores, scores[::-1]):
        codes = sinkhorn_loop(codes_from, 0.05, 3)
        for code, row in zip(codes, predicted_from / 0.2, strict=True):
            norm = math.log(sum(math.exp(v) for v in row))
            total -= sum(q * (v - norm) for q, v in zip(code, row, strict=True))
    got = prototype_alignment(IMAGE, TEXT, TABLE, example_mask=mask)
    assert float(got) == pytest.approx(total / 2 / len(rows), rel=1e-4)


def test_swapping_the_modalities_changes_nothing() -> None:
    a, b = prototype_alignment(IMAGE, TEXT, TABLE), prototype_alignment(TEXT, IMAGE, TABLE)
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_order_of_prototypes_changes_nothing() -> None:
    a = prototype_alignment(IMAGE, TEXT, TABLE)
    b = prototype_alignment(IMAGE, TEXT, TABLE[::-1])
    assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_codes_carry_no_gradient() -> None:
    grad = jax.grad(lambda s: jnp.sum(sinkhorn(s) * 3.0))(jnp.ones((4, 3)))
    np.testing.assert_array_equal(grad, 0)
