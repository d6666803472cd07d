"""Without these, ConVIRT's directions could be exchanged, or REFERS's variant keep the gradient it lacks."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.convirt import convirt

B, D = 5, 4
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, B, D)).astype(np.float32)


def one_way(a, b, real, temperature: float) -> float:
    total = 0.0
    for place, i in enumerate(real):
        scores = [float(a[i] @ b[j]) / temperature for j in real]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[place]
    return total / len(real)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1]])
@pytest.mark.parametrize(("weight", "temperature"), [(0.75, 0.5), (0.1, 2.0)])
def test_numpy_loop(variant, mask, weight, temperature) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = convirt(
        IMAGE,
        TEXT,
        temperature=temperature,
        image_to_text_weight=weight,
        variant=variant,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    wanted = weight * one_way(IMAGE, TEXT, real, temperature)
    wanted += (1 - weight) * one_way(TEXT, IMAGE, real, temperature)
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_released_gradient_is_that_of_image_to_text_alone() -> None:
    released = jax.grad(lambda x: convirt(x, TEXT, variant="released"))(IMAGE)
    alone = jax.grad(lambda x: 0.75 * convirt(x, TEXT, image_to_text_weight=1.0))(IMAGE)
    np.testing.assert_allclose(released, alone, atol=1e-6)
