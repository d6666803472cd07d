"""Segmentation towards masks that the model's own attention makes (G2D, arXiv 2312.01522)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def body_mask(image: Array, *, share: float = 0.1) -> jax.Array:
    """Where a radiograph shows something: pixels above `share` of the range of their image.

    Args:
        image: [B,H,W,C], in any units; channels are averaged.
        share: between the darkest (0) and the brightest (1) pixel; the paper gives no number.

    Returns:
        [B,H,W] float32 of 0 and 1; all 1 for an image of one value.
    """
    grey = jnp.asarray(image, jnp.float32).mean(axis=-1)
    low, high = grey.min(axis=(1, 2), keepdims=True), grey.max(axis=(1, 2), keepdims=True)
    return ((grey > low + share * (high - low)) | (high == low)).astype(jnp.float32)


def bilateral_filter(
    image: Array, *, radius: int = 2, sigma_space: float = 1.5, sigma_value: float = 0.5
) -> jax.Array:
    """Mean over a square window, weighted by distance and by likeness of value (Tomasi and Manduchi, 1998).

    Args:
        image: [B,H,W]; beyond its border the nearest pixel goes on.
        radius: half the window; 0 = no filter.
        sigma_space: of the Gaussian over the distance in pixels; sigma_value: over the difference of values.
    """
    image = jnp.asarray(image, jnp.float32)
    padded = jnp.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    height, width = image.shape[1:]
    total, weights = jnp.zeros_like(image), jnp.zeros_like(image)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            near = padded[:, radius + dy :, radius + dx :][:, :height, :width]
            far = (dy * dy + dx * dx) / (2 * sigma_space**2)
            weight = jnp.exp(-far - (near - image) ** 2 / (2 * sigma_value**2))
            total, weights = total + weight * near, weights + weight
    return total / weights


def pseudo_mask(
    attention: Array,
    size: tuple[int, int],
    *,
    quantile: float = 0.85,
    body: Array | None = None,
    radius: int = 0,
    method: Literal["nearest", "linear"] = "nearest",
) -> jax.Array:
    """Target of the segmentation, without gradient: the pixels that are attended to most.

    Args:
        attention: [B,h,w], mean over the heads.
        size: (H, W) of the image.
        quantile: share of the pixels that stays out.
        body: [B,H,W], see `body_mask`; None (as released) = all pixels may be chosen.
        radius: of the bilateral filter that smooths the edges; 0 (as released) = none.
        method: of the enlargement; nearest as released.

    Returns:
        [B,H,W] float32 in [0, 1].
    """
    attention = jax.lax.stop_gradient(jnp.asarray(attention, jnp.float32))
    large = jax.image.resize(attention, (attention.shape[0], *size), method)
    threshold = jnp.quantile(large, quantile, axis=(1, 2), keepdims=True)
    mask = (large > threshold).astype(jnp.float32)
    if body is not None:
        mask = mask * jax.lax.stop_gradient(jnp.asarray(body, jnp.float32))
    return bilateral_filter(mask, radius=radius) if radius else mask


def pseudo_segmentation(
    logits: Array,
    targets: Array,
    *,
    dice_weight: float = 0.5,
    bce_weight: float = 0.5,
    smooth: float = 1e-5,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """L = 1/2 [Dice(sigmoid(s), m) + BCE(s, m)], means over the images.

    Dice = 1 - (2 sum p m + smooth) / (sum p + sum m + smooth).

    Args:
        logits: [B,H,W]; targets: [B,H,W] in [0, 1].
        dice_weight, bce_weight: 1/2 each; the variant "released" has 1 and 0.2 instead of both.
        smooth: keeps an empty mask with an empty prediction at Dice 0.
        variant: "released" takes the Dice of the logits themselves, as its code does, which leaves out the
            sigmoid: that term has no lower bound.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    logits = jnp.asarray(logits, jnp.float32)
    targets = jax.lax.stop_gradient(jnp.asarray(targets, jnp.float32))
    predicted = jax.nn.sigmoid(logits)
    if variant == "released":
        predicted, dice_weight, bce_weight = logits, 1.0, 0.2
    over = (1, 2)
    overlap = 2 * jnp.sum(predicted * targets, axis=over) + smooth
    dice = 1 - overlap / (predicted.sum(axis=over) + targets.sum(axis=over) + smooth)
    cross = jnp.mean(jax.nn.softplus(logits) - targets * logits, axis=over)
    weights = row_weights(example_mask, logits.shape[0])
    return jnp.sum(weights * (dice_weight * dice + bce_weight * cross))
