"""InfoNCE between images and texts (ConVIRT, arXiv 2010.00747, eq. 2-4; CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.types import Array

_OFF = -1e30  # finite, so that masked logits never meet inf - inf


def row_weights(example_mask: Array | None, rows: int) -> jax.Array:
    """Weights [B] that average over the real rows; all zero when there is none."""
    if example_mask is None:
        return jnp.full((rows,), 1.0 / rows, jnp.float32)
    mask = jnp.asarray(example_mask, jnp.float32)
    return mask / jnp.maximum(mask.sum(), 1.0)


def mask_columns(logits: Array, example_mask: Array | None, drop: Array | None = None) -> jax.Array:
    """Takes padded columns, and pairs marked in `drop` [B,B], out of every softmax."""
    logits = jnp.asarray(logits)
    if example_mask is not None:
        keep = jnp.asarray(example_mask)[None, :] > 0
        # The diagonal stays: a padded row then has a finite (and unweighted) loss.
        logits = jnp.where(keep | jnp.eye(logits.shape[0], dtype=bool), logits, _OFF)
    return logits if drop is None else jnp.where(drop, _OFF, logits)


def diagonal_cross_entropy(logits: Array, weights: Array) -> jax.Array:
    """Weighted mean of `-log softmax(logits)[i, i]`; logits [B,B], weights [B]."""
    picked = jnp.diagonal(logits) - jax.nn.logsumexp(logits, axis=1)
    return -jnp.sum(weights * picked)


def matching_cross_entropies(
    logits: Array, *, example_mask: Array | None = None, drop_negatives: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of "row i belongs to column i" over the rows, and over the columns.

    Args:
        logits: [B,B], images in rows, texts in columns.
        example_mask, drop_negatives: as for `info_nce`.

    Returns:
        image-to-text and text-to-image losses, float32 scalars.
    """
    logits = jnp.asarray(logits, jnp.float32)
    weights = row_weights(example_mask, logits.shape[0])
    drop_t = None if drop_negatives is None else drop_negatives.T
    return (
        diagonal_cross_entropy(mask_columns(logits, example_mask, drop_negatives), weights),
        diagonal_cross_entropy(mask_columns(logits.T, example_mask, drop_t), weights),
    )


def duplicate_negatives(text_id: Array) -> jax.Array:
    """[B,B] True where two different rows have the same text: false negatives of each other."""
    same = text_id[:, None] == text_id[None, :]
    return same & ~jnp.eye(text_id.shape[0], dtype=bool)


def info_nce(
    image_embed: Array,
    text_embed: Array,
    logit_scale: Array | float,
    *,
    image_to_text_weight: float = 0.5,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """Bidirectional InfoNCE over the global batch.

    L = w * CE_i2t + (1 - w) * CE_t2i with logits `logit_scale * <v_i, t_j>`. With normalised embeddings and
    all similarities equal it is log B.

    Args:
        image_embed: [B,D], L2-normalised.
        text_embed: [B,D], L2-normalised.
        logit_scale: inverse temperature.
        image_to_text_weight: w; 0.5 for CLIP, 0.75 for ConVIRT (its lambda).
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.
        drop_negatives: [B,B] True for pairs that are no negatives (`duplicate_negatives`).

    Returns:
        float32 scalar.
    """
    logits = scaled_products(image_embed, text_embed, logit_scale)
    image_to_text, text_to_image = matching_cross_entropies(
        logits, example_mask=example_mask, drop_negatives=drop_negatives
    )
    return image_to_text_weight * image_to_text + (1 - image_to_text_weight) * text_to_image


def retrieval_accuracy(
    image_embed: Array,
    text_embed: Array,
    *,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """Share of the real rows, both directions together, whose own partner is the most similar one.

    Args:
        image_embed, text_embed, example_mask, drop_negatives: as for `info_nce`.

    Returns:
        float32 scalar; ties go to the lower row, so embeddings that are all equal score 1 / B.
    """
    scores = jax.lax.stop_gradient(scaled_products(image_embed, text_embed, 1.0))
    weights = row_weights(example_mask, scores.shape[0])
    own = jnp.arange(scores.shape[0])
    drop_t = None if drop_negatives is None else drop_negatives.T
    to_text = mask_columns(scores, example_mask, drop_negatives).argmax(axis=1) == own
    to_image = mask_columns(scores.T, example_mask, drop_t).argmax(axis=1) == own
    return jnp.sum(weights * (to_text.astype(jnp.float32) + to_image)) / 2


def scaled_products(image_embed: Array, text_embed: Array, logit_scale: Array | float) -> jax.Array:
    """Logits `logit_scale * <v_i, t_j>` [B,M] of [B,D] and [M,D], in float32."""
    image = jnp.asarray(image_embed, jnp.float32)
    text = jnp.asarray(text_embed, jnp.float32)
    scores = jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.asarray(logit_scale, jnp.float32) * scores
