"""Contrast with triaged reports: positive, neutral and negative ones (SAT, Liu et al., IEEE TMI 2023)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def triage(
    similarity: Array, *, positive: float = 0.98, negative: float = 0.97
) -> tuple[jax.Array, jax.Array]:
    """Sorts the pairs of a batch by the similarity of their reports.

    Args:
        similarity: [B,B] cosines of the reports' states in a frozen text encoder.
        positive: reports at least this similar are positives of each other.
        negative: reports at most this similar are negatives; those between the two are left out.

    Returns:
        positives, negatives: [B,B] bool, no pair in both; a row is always its own positive.
    """
    similarity = jnp.asarray(similarity, jnp.float32)
    own = jnp.eye(similarity.shape[0], dtype=bool)
    positives = (similarity >= positive) | own
    return positives, (similarity <= negative) & ~positives


def triaged_contrast(
    logits: Array,
    positives: Array,
    negatives: Array,
    *,
    image_to_text_weight: float = 0.5,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Each positive against all negatives of its row, but not against the other positives.

    L = w L(logits) + (1 - w) L(logits^T) with
    L(s) = mean_i 1/|P_i| sum_{p in P_i} -log [e^{s_ip} / (e^{s_ip} + sum_{n in N_i} e^{s_in})].

    Args:
        logits: [B,B] scaled similarities, images in rows.
        positives, negatives: [B,B] bool, see `triage`; both directions use the same rows of them.
        image_to_text_weight: w (`alpha_weight` of the released code).
        variant: "released" also divides each term by 1 + |N_i|, because the released `softXEnt` takes the
            candidates of the one row for a batch; its gradient fades with the number of negatives.
        example_mask: [B], 1 for real rows; padded rows are no anchors and no candidates.

    Returns:
        float32 scalar; InfoNCE when every row is its only positive and all others are negatives.
    """
    logits = jnp.asarray(logits, jnp.float32)
    positives, negatives = jnp.asarray(positives, bool), jnp.asarray(negatives, bool)
    if example_mask is not None:
        real = jnp.asarray(example_mask) > 0
        pairs = real[:, None] & real[None, :]
        positives, negatives = positives & pairs, negatives & pairs
    weights = row_weights(example_mask, logits.shape[0])
    share = positives / jnp.maximum(positives.sum(axis=1, keepdims=True), 1)
    if variant == "released":
        share = share / (1 + negatives.sum(axis=1, keepdims=True))

    def one_way(scores: jax.Array) -> jax.Array:
        others = jax.nn.logsumexp(jnp.where(negatives, scores, OFF), axis=1, keepdims=True)
        # -log(e^p / (e^p + e^others)) = softplus(others - p); without negatives it is 0.
        terms = jax.nn.softplus(others - scores)
        return jnp.sum(weights * jnp.sum(share * terms, axis=1))

    w = image_to_text_weight
    return w * one_way(logits) + (1 - w) * one_way(logits.T)
