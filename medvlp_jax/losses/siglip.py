"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, eq. 1 and algorithm 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.types import Array


def siglip(
    image_embed: Array,
    text_embed: Array,
    logit_scale: Array | float,
    logit_bias: Array | float,
    *,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """L = -1/B sum_ij log sigmoid(y_ij (t <v_i, t_j> + b)), y = 1 on the diagonal and -1 elsewhere.

    The sum over all pairs is divided by the rows, so at zero logits the loss is B log 2.

    Args:
        image_embed: [B,D], L2-normalised.
        text_embed: [B,D], L2-normalised.
        logit_scale: t.
        logit_bias: b.
        example_mask: [B], 1 for real rows; pairs with a padded row do not count.
        drop_negatives: [B,B] True for pairs that are no negatives.

    Returns:
        float32 scalar.
    """
    image = jnp.asarray(image_embed, jnp.float32)
    text = jnp.asarray(text_embed, jnp.float32)
    rows = image.shape[0]
    scores = jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    logits = scores * jnp.asarray(logit_scale, jnp.float32) + jnp.asarray(logit_bias, jnp.float32)
    sign = 2 * jnp.eye(rows, dtype=jnp.float32) - 1
    pairs = -jax.nn.log_sigmoid(sign * logits)
    mask = jnp.ones((rows,), jnp.float32)
    if example_mask is not None:
        mask = jnp.asarray(example_mask, jnp.float32)
    weight = mask[:, None] * mask[None, :]
    if drop_negatives is not None:
        weight = jnp.where(drop_negatives, 0.0, weight)
    return jnp.sum(jnp.where(weight > 0, pairs, 0.0) * weight) / jnp.maximum(mask.sum(), 1.0)
