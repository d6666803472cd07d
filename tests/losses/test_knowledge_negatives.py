"""Without these, samples that share their findings could still be pushed apart at full strength."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.knowledge_negatives import (
    enhanced_contrast,
    knowledge_guidance,
    noise_of_negatives,
    sample_knowledge,
)

B, K, E = 5, 4, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, B)).astype(np.float32) * 3
NOISE = RNG.random((B, B)).astype(np.float32)
NOISE[np.arange(B), np.arange(B)] = 0
NOISE[0, 1] = 1


def loop(real, weight: float) -> float:
    total = 0.0
    for scores, noise, share in ((LOGITS, NOISE, weight), (LOGITS.T, NOISE.T, 1 - weight)):
        for i in real:
            own = math.exp(scores[i, i])
            others = sum((1 - noise[i, j]) * math.exp(scores[i, j]) for j in real if j != i)
            total -= share * math.log(own / (own + others)) / len(real)
    return total


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0]])
@pytest.mark.parametrize("weight", [0.5, 0.75])
def test_enhanced_contrast_loop(mask, weight) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = enhanced_contrast(
        LOGITS,
        NOISE,
        image_to_text_weight=weight,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    assert float(got) == pytest.approx(loop(real, weight), rel=1e-5)


def test_from_info_nce_to_nothing() -> None:
    image, text = RNG.normal(size=(2, B, E)).astype(np.float32)
    none, full = np.zeros((B, B)), 1 - np.eye(B)
    got = enhanced_contrast(2 * image @ text.T, none)
    assert float(got) == pytest.approx(float(info_nce(image, text, 2.0)), rel=1e-5)
    assert float(enhanced_contrast(LOGITS, full)) == pytest.approx(0, abs=1e-6)
    grad = jax.grad(lambda l: enhanced_contrast(1e4 * l, full))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_knowledge_and_noise_by_hand() -> None:
    table = np.eye(K, 3).astype(np.float32)
    label = np.array([[1, 0, -1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], np.float32)
    half = math.sqrt(0.5)
    knowledge = sample_knowledge(label, table)
    np.testing.assert_allclose(
        knowledge, [[1, 0, 0], [half, half, 0], [0, 0, 1], [0, 0, 0]], atol=1e-6
    )
    noise = noise_of_negatives(knowledge)
    wanted = np.zeros((4, 4))
    wanted[0, 1] = wanted[1, 0] = half
    np.testing.assert_allclose(noise, wanted, atol=1e-6)
    opposite = noise_of_negatives(np.array([[1.0, 0], [-1, 0]], np.float32))
    np.testing.assert_array_equal(opposite, 0)


def test_guidance_loop() -> None:
    image, text, known = RNG.normal(size=(3, B, E)).astype(np.float32)
    present, rows = np.array([1, 1, 0, 1, 1]), np.array([1, 1, 1, 0, 1])
    real = [0, 1, 4]
    total = 0.0
    for side in (image, text):
        for a, b in ((side, known), (known, side)):
            for place, i in enumerate(real):
                scores = [1.5 * float(a[i] @ b[j]) for j in real]
                total += math.log(sum(math.exp(s) for s in scores)) - scores[place]
    got = knowledge_guidance(image, text, known, 1.5, present=present, example_mask=rows)
    assert float(got) == pytest.approx(total / 4 / len(real), rel=1e-5)
    nobody = knowledge_guidance(image, text, known, 1.5, present=0 * present)
    assert float(nobody) == 0
