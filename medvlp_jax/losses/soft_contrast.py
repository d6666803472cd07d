"""Contrast with soft targets: which pairs belong together is a matter of degree.

`soft_contrast` takes the softmax of similarities as target (MedCLIP, arXiv 2210.10163, eq. 2-6).
`target_contrast` takes the targets themselves: labels (UniCL, 2204.03610; UMCL), categories (FLAIR,
2308.07898), concepts (KAD, 2302.14042), a clinical prior (IMITATE, 2310.07355).
"""

from __future__ import annotations

from typing import Literal

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


def same_group(image_group: Array, text_group: Array | None = None) -> jax.Array:
    """Targets 1 where two rows are of one category, concept or text, else 0.

    Args:
        image_group: [B] ids, or [B,K] vectors, e.g. of labels, all of whose entries must agree;
        text_group: likewise, None = the same.

    Returns:
        [B,B] float32; the diagonal is 1, whatever the groups: a pair belongs together.
    """
    text_group = image_group if text_group is None else text_group
    rows, columns = (jnp.reshape(x, (len(x), -1)) for x in (image_group, text_group))
    same = (rows[:, None] == columns[None, :]).all(axis=-1)
    return (same | jnp.eye(same.shape[0], dtype=bool)).astype(jnp.float32)


def clinical_prior(
    report_states: Array, *, strength: float = 0.2, smoothing: float = 0.07, eps: float = 1e-8
) -> jax.Array:
    """Targets delta_ij + (1 - exp(-strength * max(r_ij, 0))) * smoothing (IMITATE, arXiv 2310.07355).

    r_ij is Pearson's correlation of two reports' states over the features; the pair itself keeps 1. They are
    used without normalisation (`normalise="none"`) and, as released, with the temperature as smoothing.

    Args:
        report_states: [B,D] of a frozen text encoder; no gradient flows into them.
        strength: lambda; smoothing: factor of all targets off the diagonal.
        eps: keeps constant states (norm 0) at correlation 0.

    Returns:
        [B,B] float32.
    """
    states = jax.lax.stop_gradient(jnp.asarray(report_states, jnp.float32))
    states = states - states.mean(axis=1, keepdims=True)
    states = states / jnp.maximum(jnp.linalg.norm(states, axis=1, keepdims=True), eps)
    correlation = jnp.matmul(states, states.T, precision=jax.lax.Precision.HIGHEST)
    prior = (1 - jnp.exp(-strength * jnp.maximum(correlation, 0.0))) * smoothing
    own = jnp.eye(states.shape[0])
    return own + (1 - own) * prior


def relax_positives(similarity: Array, positives: Array, ceiling: float) -> jax.Array:
    """Cosines of positive pairs, cut off at `ceiling`: a pair that is close enough is drawn no closer.

    The positive-pair relaxation for reports that say more than one thing of an image (Jang et al., arXiv
    2212.07050), to be used on the cosines before they are scaled.

    Args:
        similarity: [B,B]; positives: [B,B], nonzero for positive pairs.
        ceiling: largest cosine that still counts.
    """
    similarity = jnp.asarray(similarity, jnp.float32)
    return jnp.where(jnp.asarray(positives) > 0, jnp.minimum(similarity, ceiling), similarity)


def soft_target_cross_entropy(logits: Array, targets: Array, weights: Array) -> jax.Array:
    """Weighted sum over the rows of `-sum_j targets_ij log softmax(logits)_ij`; [B,M], weights [B]."""
    log_probs = jax.nn.log_softmax(logits, axis=1)
    # A masked column has target 0 and a hugely negative log probability: their product must be 0.
    return -jnp.sum(weights * jnp.sum(jnp.where(targets != 0, targets * log_probs, 0.0), axis=1))


def target_contrast(
    logits: Array,
    targets: Array,
    *,
    normalise: Literal["sum", "l2", "none"] = "sum",
    image_to_text_weight: float = 0.5,
    example_mask: Array | None = None,
) -> jax.Array:
    """L = w mean_i H(y_i, softmax_j l_ij) + (1 - w) mean_j H(y_j, softmax_i l_ij), H(y, p) = -sum y log p.

    With `normalise="sum"` and targets 1 for all rows of a label (-log p is averaged over a row's positives)
    this is FLAIR's loss, and half of UniCL's, which adds the directions; KAD's released text contrast divides
    by the L2 norm, so that its targets do not sum to 1.

    Args:
        logits: [B,B] scaled similarities, images in rows.
        targets: [B,B], not negative: `same_group`, `clinical_prior`, or the positive part of
            `label_similarity`.
        normalise: each anchor's targets are divided by their sum, by their L2 norm, or left as they are.
        image_to_text_weight: w.
        example_mask: [B], 1 for real rows; padded rows are no anchors and no candidates.

    Returns:
        float32 scalar.
    """
    logits = jnp.asarray(logits, jnp.float32)
    targets = jax.lax.stop_gradient(jnp.asarray(targets, jnp.float32))
    if example_mask is not None:
        real = jnp.asarray(example_mask) > 0
        targets = jnp.where(real[:, None] & real[None, :], targets, 0.0)
    weights = row_weights(example_mask, logits.shape[0])

    def one_way(scores: jax.Array, wanted: jax.Array) -> jax.Array:
        if normalise != "none":
            order = 1 if normalise == "sum" else 2
            size = jnp.linalg.norm(wanted, ord=order, axis=1, keepdims=True)
            wanted = wanted / jnp.where(size > 0, size, 1.0)
        return soft_target_cross_entropy(mask_columns(scores, example_mask), wanted, weights)

    to_text, to_image = one_way(logits, targets), one_way(logits.T, targets.T)
    return image_to_text_weight * to_text + (1 - image_to_text_weight) * to_image


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
        total += soft_target_cross_entropy(mask_columns(scores, example_mask), share, weights)
    return total / 2
