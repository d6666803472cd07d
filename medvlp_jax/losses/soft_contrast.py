"""Contrast with soft targets (MedCLIP, arXiv 2210.10163, eq. 2-6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import mask_columns, row_weights
from medvlp_jax.types import Array


def label_similarity(
    image_label: Array, text_label: Array, *, cosine: bool = True, eps: float = 1e-8
) -> jax.Array:
    """Similarity of label vectors [B,K] x [B,K] -> [B,B].

    Args:
        image_label: entries 1, 0, -1 (uncertain), unknown ones 0.
        text_label: the same for the texts.
        cosine: the paper's eq. 2; False gives the plain product of the released code.
        eps: keeps vectors without any finding (norm 0) at similarity 0.
    """
    image = jnp.asarray(image_label, jnp.float32)
    text = jnp.asarray(text_label, jnp.float32)
    if cosine:
        image = image / jnp.maximum(jnp.linalg.norm(image, axis=-1, keepdims=True), eps)
        text = text / jnp.maximum(jnp.linalg.norm(text, axis=-1, keepdims=True), eps)
    return jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)


def soft_contrast(
    logits: Array, target_scores: Array, *, example_mask: Array | None = None
) -> jax.Array:
    """L = 1/2 [H(softmax_j y_ij, softmax_j l_ij) + H(softmax_i y_ij, softmax_i l_ij)].

    Args:
        logits: [B,B] scaled similarities, images in rows.
        target_scores: [B,B] similarities y whose softmax is the target.
        example_mask: [B], 1 for real rows; padded rows are no anchors and no candidates.

    Returns:
        float32 scalar.
    """
    logits = jnp.asarray(logits, jnp.float32)
    targets = jnp.asarray(target_scores, jnp.float32)
    weights = row_weights(example_mask, logits.shape[0])
    total = jnp.zeros([], jnp.float32)
    for scores, wanted in ((logits, targets), (logits.T, targets.T)):
        share = jax.nn.softmax(mask_columns(wanted, example_mask), axis=1)
        log_probs = jax.nn.log_softmax(mask_columns(scores, example_mask), axis=1)
        # A masked column has share 0 and a hugely negative log probability: their product must be 0.
        rows = jnp.sum(jnp.where(share > 0, share * log_probs, 0.0), axis=1)
        total = total - jnp.sum(weights * rows)
    return total / 2
