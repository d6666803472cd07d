"""Without these, SimSiam could send gradients through its targets and collapse, or count padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.losses.simsiam import simsiam

B, K, D = 3, 4, 5
RNG = np.random.default_rng(0)
X, Y, PX, PY = RNG.normal(size=(4, B, K, D)).astype(np.float32)
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
ROWS = np.array([1, 0, 1], np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


def test_numpy_loop() -> None:
    wanted = []
    for i in range(B):
        elements = [k for k in range(K) if MASK[i, k]]
        values = [-(cosine(PX[i, k], Y[i, k]) + cosine(PY[i, k], X[i, k])) / 2 for k in elements]
        wanted.append(np.mean(values))
    got = simsiam(X, Y, PX, PY, mask=MASK)
    assert float(got) == pytest.approx(np.mean(wanted), abs=1e-6)
    got = simsiam(X, Y, PX, PY, mask=MASK, example_mask=ROWS)
    assert float(got) == pytest.approx((wanted[0] + wanted[2]) / 2, abs=1e-6)
    first = [-(cosine(PX[i, 0], Y[i, 0]) + cosine(PY[i, 0], X[i, 0])) / 2 for i in range(B)]
    got = simsiam(X[:, 0], Y[:, 0], PX[:, 0], PY[:, 0])
    assert float(got) == pytest.approx(np.mean(first), abs=1e-6)


def test_the_targets_get_no_gradient() -> None:
    grads = jax.grad(simsiam, argnums=(0, 1, 2, 3))(X, Y, PX, PY)
    for target in grads[:2]:
        np.testing.assert_array_equal(target, 0)
    for predicted in grads[2:]:
        assert np.abs(predicted).max() > 1e-3


def test_equal_directions_give_minus_one() -> None:
    assert float(simsiam(X, X, 3 * X, 2 * X)) == pytest.approx(-1, rel=1e-6)
