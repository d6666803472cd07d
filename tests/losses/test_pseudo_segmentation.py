"""Without these, the masks of G2D could come from the wrong pixels, or carry a gradient."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.pseudo_segmentation import (
    bilateral_filter,
    body_mask,
    pseudo_mask,
    pseudo_segmentation,
)

B, H, W = 3, 4, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, H, W)).astype(np.float32) * 2
TARGETS = (RNG.random((B, H, W)) < 0.3).astype(np.float32)
TARGETS[1] = 0


def loop(real, dice_weight, bce_weight, released) -> float:
    total = 0.0
    for b in real:
        inner = predicted = wanted = cross = 0.0
        for y in range(H):
            for x in range(W):
                s, m = float(LOGITS[b, y, x]), float(TARGETS[b, y, x])
                p = 1 / (1 + math.exp(-s))
                cross -= m * math.log(p) + (1 - m) * math.log(1 - p)
                p = s if released else p
                inner, predicted, wanted = inner + p * m, predicted + p, wanted + m
        dice = 1 - (2 * inner + 1e-5) / (predicted + wanted + 1e-5)
        total += dice_weight * dice + bce_weight * cross / (H * W)
    return total / len(real)


@pytest.mark.parametrize("mask", [None, [1, 0, 1]])
@pytest.mark.parametrize(
    ("variant", "weights"), [("paper", (0.5, 0.5)), ("paper", (2.0, 0.3)), ("released", (1.0, 0.2))]
)
def test_numpy_loop(mask, variant, weights) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    options = {} if variant == "released" else {"dice_weight": weights[0], "bce_weight": weights[1]}
    got = pseudo_segmentation(
        LOGITS,
        TARGETS,
        variant=variant,
        example_mask=None if mask is None else np.array(mask, np.float32),
        **options,
    )
    assert float(got) == pytest.approx(loop(real, *weights, variant == "released"), rel=1e-5)


def test_perfect_and_empty_predictions_are_near_zero() -> None:
    sure = 40 * (2 * TARGETS - 1)
    assert float(pseudo_segmentation(sure, TARGETS)) == pytest.approx(0, abs=1e-5)


def test_mask_holds_the_most_attended_pixels() -> None:
    attention = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    mask = np.asarray(pseudo_mask(attention, (4, 6), quantile=0.8))
    wanted = np.zeros((1, 4, 6))
    wanted[0, 2:, 4:] = 1  # the last cell is the only one above the 80th percentile
    np.testing.assert_array_equal(mask, wanted)
    body = np.ones((1, 4, 6))
    body[0, 3] = 0
    np.testing.assert_array_equal(
        pseudo_mask(attention, (4, 6), quantile=0.8, body=body), wanted * body
    )
    share = np.mean(np.asarray(pseudo_mask(RNG.random((2, 20, 20)), (20, 20))), axis=(1, 2))
    np.testing.assert_allclose(share, 0.15, atol=0.01)
    smooth = np.asarray(pseudo_mask(attention, (4, 6), quantile=0.8, radius=1))
    assert 0 < smooth[0, 2, 4] < 1
    assert smooth[0, 3, 5] == pytest.approx(1)
    grad = jax.grad(lambda a: pseudo_mask(a, (4, 6), radius=1).sum())(jnp.asarray(attention))
    np.testing.assert_array_equal(grad, 0)


def test_body_is_what_is_not_dark() -> None:
    image = np.array([[[0, 5], [20, 100]], [[7, 7], [7, 7]]], np.float32)[..., None]
    wanted = [[[0, 0], [1, 1]], [[1, 1], [1, 1]]]
    for shifted in (image, 3 * image - 40):  # any units
        np.testing.assert_array_equal(body_mask(shifted), wanted)


def test_bilateral_filter_loop() -> None:
    image = RNG.random((2, 5, 4)).astype(np.float32)
    wanted = np.zeros_like(image)
    for b in range(2):
        for y in range(5):
            for x in range(4):
                total = weights = 0.0
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        near = image[b, min(max(y + dy, 0), 4), min(max(x + dx, 0), 3)]
                        unlike = (near - image[b, y, x]) ** 2 / (2 * 0.3**2)
                        weight = math.exp(-(dy * dy + dx * dx) / (2 * 0.8**2) - unlike)
                        total, weights = total + weight * near, weights + weight
                wanted[b, y, x] = total / weights
    got = bilateral_filter(image, radius=1, sigma_space=0.8, sigma_value=0.3)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_allclose(bilateral_filter(image, radius=0), image)
