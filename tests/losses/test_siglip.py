"""Without these, the sigmoid loss could average instead of sum, or count pairs with padding."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.info_nce import duplicate_negatives
from medvlp_jax.losses.siglip import siglip

B, D = 6, 5


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(2, B, D)).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x[0], x[1]


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0, 1]])
@pytest.mark.parametrize("text_id", [None, [3, 3, 1, 3, 2, 1]])
def test_numpy_loop(mask, text_id) -> None:
    image, text = embeddings()
    real = [i for i in range(B) if mask is None or mask[i]]
    total = 0.0
    for i in real:
        for j in real:
            if text_id is not None and i != j and text_id[i] == text_id[j]:
                continue
            y = 1 if i == j else -1
            total += math.log1p(math.exp(-y * (4 * float(image[i] @ text[j]) - 1)))
    got = siglip(
        image,
        text,
        4.0,
        -1.0,
        example_mask=None if mask is None else np.array(mask, np.float32),
        drop_negatives=None if text_id is None else duplicate_negatives(np.array(text_id)),
    )
    assert float(got) == pytest.approx(total / len(real), rel=1e-5)


def test_zero_logits_are_b_log_2() -> None:
    """The sum over all B x B pairs is divided by the B rows, not by the pairs."""
    zero = np.zeros((B, D), np.float32)
    assert float(siglip(zero, zero, 1.0, 0.0)) == pytest.approx(B * math.log(2), rel=1e-6)


def test_swapping_the_modalities_changes_nothing() -> None:
    image, text = embeddings()
    same = float(siglip(image, text, 5.0, -3.0))
    assert float(siglip(text, image, 5.0, -3.0)) == pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize(("scale", "bias"), [(1e4, 0.0), (1e4, -1e4), (0.0, 1e4), (10.0, -1e6)])
def test_extreme_logits_are_finite(scale: float, bias: float) -> None:
    image, text = embeddings()
    value, grads = jax.value_and_grad(siglip, argnums=(0, 1, 2, 3))(image, text, scale, bias)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_a_very_negative_bias_costs_the_positives_only() -> None:
    image, text = embeddings()
    assert float(siglip(image, text, 0.0, -50.0)) == pytest.approx(50, rel=1e-5)
