"""Masked prediction of words and patches (BERT, arXiv 1810.04805; MAE, arXiv 2111.06377)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import IGNORE_INDEX, Array


def all_position_labels(
    input_ids: Array, labels: Array, attention_mask: Array | None = None
) -> jax.Array:
    """Labels that ask for every token, not only the masked ones.

    MRM's released code (arXiv 2301.13155) takes the cross entropy over all positions, padding included;
    that of PMC-CLIP (2303.07240) over all that are not padding.

    Args:
        input_ids: [B,L] int, masked.
        labels: [B,L] int, original id where masked, -100 elsewhere.
        attention_mask: [B,L], 0 on padding, which then stays without a label; None = padding counts.
    """
    original = jnp.where(labels != IGNORE_INDEX, labels, input_ids)
    if attention_mask is None:
        return original
    return jnp.where(jnp.asarray(attention_mask) != 0, original, IGNORE_INDEX)


def masked_language(
    logits: Array, labels: Array, *, example_mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy over the positions to predict, and the share predicted right.

    Args:
        logits: [B,L,V].
        labels: [B,L] int, -100 = not predicted.
        example_mask: [B], 1 for real rows.

    Returns:
        loss, accuracy; both 0 when nothing is to be predicted.
    """
    logits = jnp.asarray(logits, jnp.float32)
    weight = (labels != IGNORE_INDEX).astype(jnp.float32)
    if example_mask is not None:
        weight = weight * jnp.asarray(example_mask, jnp.float32)[:, None]
    safe = jnp.maximum(labels, 0)
    picked = jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    total = jnp.maximum(weight.sum(), 1.0)
    return jnp.sum(loss * weight) / total, jnp.sum(right * weight) / total


def patchify(image: Array, patch_size: int) -> jax.Array:
    """[B,H,W,C] -> [B,N,P*P*C]; patches row by row, within a patch (row, column, channel)."""
    rows, height, width, channels = image.shape
    p = patch_size
    if height % p or width % p:
        raise UserError(
            f"images of {height} x {width} do not divide into patches of {p}; change data.image.size"
        )
    grid = jnp.reshape(image, (rows, height // p, p, width // p, p, channels))
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(rows, -1, p * p * channels)


def unpatchify(patches: Array, patch_size: int, channels: int) -> jax.Array:
    """Inverse of `patchify` for square images."""
    rows, count, _ = patches.shape
    side, p = round(count**0.5), patch_size
    if side * side != count:
        raise UserError(f"{count} patches do not form a square image; unpatchify needs one")
    grid = jnp.reshape(patches, (rows, side, side, p, p, channels))
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(rows, side * p, side * p, channels)


def normalise_patches(patches: Array, eps: float = 1e-6) -> jax.Array:
    """Each patch to mean 0 and variance 1 (unbiased variance, as MAE's target)."""
    patches = jnp.asarray(patches, jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + eps)


def masked_image(
    prediction: Array,
    target: Array,
    image_mask: Array,
    *,
    normalise: bool = True,
    example_mask: Array | None = None,
) -> jax.Array:
    """Mean squared error over the removed patches (MAE, section 3).

    Args:
        prediction: [B,N,P*P*C].
        target: [B,N,P*P*C] pixels, from `patchify`.
        image_mask: [B,N], 1 = removed.
        normalise: predict normalised patches.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar, 0 when nothing was removed.
    """
    wanted = normalise_patches(target) if normalise else jnp.asarray(target, jnp.float32)
    error = jnp.mean((jnp.asarray(prediction, jnp.float32) - wanted) ** 2, axis=-1)
    weight = jnp.asarray(image_mask, jnp.float32)
    if example_mask is not None:
        weight = weight * jnp.asarray(example_mask, jnp.float32)[:, None]
    return jnp.sum(error * weight) / jnp.maximum(weight.sum(), 1.0)
