"""Without these, the entropies of TIER could run over padding, or over the wrong side."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.tier import token_patch_entropy

B, N, L, D = 3, 4, 5, 6
RNG = np.random.default_rng(0)
PATCHES = RNG.normal(size=(B, N, D)).astype(np.float32)
TOKENS = RNG.normal(size=(B, L, D)).astype(np.float32)
COUNTS = (5, 2, 1)
MASK = (np.arange(L) < np.array(COUNTS)[:, None]).astype(np.float32)


def entropy(scores, eps: float) -> float:
    total = sum(math.exp(s) for s in scores)
    return -sum(p * math.log(p) for p in (math.exp(s) / total + eps for s in scores))


def cosine(a, b) -> float:
    return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("rows", [None, [1, 0, 1]])
def test_numpy_loop(released, rows) -> None:
    real = [i for i in range(B) if rows is None or rows[i]]
    eps = 1e-3 if released else 0.0
    wanted = [0.0, 0.0]
    for i in real:
        count = L if released else COUNTS[i]
        table = [[cosine(TOKENS[i, t], p) / 0.5 for p in PATCHES[i]] for t in range(count)]
        wanted[0] += np.mean([entropy(row, eps) for row in table]) / len(real)
        columns = [[row[n] for row in table] for n in range(N)]
        wanted[1] += np.mean([entropy(column, eps) for column in columns]) / len(real)
    got = token_patch_entropy(
        PATCHES,
        TOKENS,
        MASK,
        temperature=0.5,
        variant="released" if released else "paper",
        eps=1e-3,
        example_mask=None if rows is None else np.array(rows, np.float32),
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_equal_similarities_have_the_largest_entropy() -> None:
    got = token_patch_entropy(np.ones((1, N, D)), np.ones((1, L, D)), np.array([[1, 1, 1, 0, 0]]))
    np.testing.assert_allclose(got, [math.log(N), math.log(3)], rtol=1e-6)
