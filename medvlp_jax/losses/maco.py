"""Contrast weighted by what a masked image still shows (MaCo, Huang et al., arXiv 2309.05904)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import mask_columns, row_weights, scaled_products
from medvlp_jax.types import Array


def correlation_weighted_contrast(
    image_embed: Array,
    text_embed: Array,
    importance: Array,
    logit_scale: Array | float,
    *,
    example_mask: Array | None = None,
) -> jax.Array:
    """L = 1/4 [CE(g S) + CE(g S^T) + CE_g(S) + CE_g(S^T)], g = softplus(importance), S = scale <v_i, t_j>.

    g multiplies the rows of the logits in the first two terms (a temperature of each pair), and, without
    gradient, weights the rows in the last two: CE_g = sum_i g_i l_i / sum_i g_i. In the second and fourth
    term row i is text i, and g_i the weight of its own image.

    Args:
        image_embed: [B,D] of masked images, L2-normalised.
        text_embed: [B,D], L2-normalised.
        importance: [B], a linear function of the visibility mask of the patches.
        logit_scale: inverse temperature (MaCo learns it itself, not its logarithm; 1 / 0.03 at the start).
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.

    Returns:
        float32 scalar. The released code parses a weight `lam` of 0.9 for it and never uses it.
    """
    logits = scaled_products(image_embed, text_embed, logit_scale)
    gain = jax.nn.softplus(jnp.asarray(importance, jnp.float32))
    plain = row_weights(example_mask, logits.shape[0])
    shares = plain * jax.lax.stop_gradient(gain)
    shares = shares / jnp.maximum(shares.sum(), 1e-30)

    def losses(scores: jax.Array) -> jax.Array:
        scores = mask_columns(scores, example_mask)
        return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)

    total = jnp.zeros([], jnp.float32)
    for scores in (logits, logits.T):
        total += jnp.sum(plain * losses(gain[:, None] * scores))
        total += jnp.sum(shares * losses(scores))
    return total / 4
