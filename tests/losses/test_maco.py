"""Without these, MaCo's weights could scale columns for rows or be trained where they are constants."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.maco import correlation_weighted_contrast

B, D = 5, 4
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, B, D)).astype(np.float32)
IMPORTANCE = RNG.normal(size=B).astype(np.float32)


def row_loss(scores: list[float], own: int) -> float:
    return math.log(sum(math.exp(s) for s in scores)) - scores[own]


def loop(real, scale: float) -> float:
    gain = {i: math.log(1 + math.exp(float(IMPORTANCE[i]))) for i in real}
    total = 0.0
    for a, b in ((IMAGE, TEXT), (TEXT, IMAGE)):
        for place, i in enumerate(real):
            scores = [scale * float(a[i] @ b[j]) for j in real]
            total += row_loss([gain[i] * s for s in scores], place) / len(real)
            total += gain[i] * row_loss(scores, place) / sum(gain.values())
    return total / 4


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1]])
@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_numpy_loop(mask, scale) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = correlation_weighted_contrast(
        IMAGE,
        TEXT,
        IMPORTANCE,
        scale,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    assert float(got) == pytest.approx(loop(real, scale), rel=1e-5)


def test_gain_of_one_is_info_nce() -> None:
    ones = np.full(B, math.log(math.e - 1), np.float32)  # softplus is 1
    got = correlation_weighted_contrast(IMAGE, TEXT, ones, 2.0)
    assert float(got) == pytest.approx(float(info_nce(IMAGE, TEXT, 2.0)), rel=1e-5)


def test_weights_learn_from_the_scaled_terms_only() -> None:
    def scaled_terms(x):
        gain = jax.nn.softplus(x)[:, None]
        total = 0.0
        for s in (IMAGE @ TEXT.T, TEXT @ IMAGE.T):
            total += jnp.mean(jax.nn.logsumexp(gain * s, axis=1) - jnp.diagonal(gain * s))
        return total / 4

    got = jax.grad(lambda x: correlation_weighted_contrast(IMAGE, TEXT, x, 1.0))(IMPORTANCE)
    np.testing.assert_allclose(got, jax.grad(scaled_terms)(jnp.asarray(IMPORTANCE)), atol=1e-6)
