"""Negatives that weigh less the more two samples share in a knowledge graph (KoBo, arXiv 2307.07246).

KoBo measures the noise of a negative pair by the likeness of the two samples' knowledge and, beside the
contrast of images and texts, aligns both with that knowledge. Its code is not published; the forms below are
the plain ones of these ideas, not its exact equations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import info_nce, row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array


def sample_knowledge(label: Array, entity_table: Array) -> jax.Array:
    """Knowledge of each sample: the mean embedding of the entities that are present, at length 1.

    Args:
        label: [B,K], 1 where the entity is present; other values do not count.
        entity_table: [K,E] embeddings of the entities in the knowledge graph.

    Returns:
        [B,E] float32; zeros for a sample without any entity.
    """
    present = (jnp.asarray(label) == 1).astype(jnp.float32)
    return normalise(present @ jnp.asarray(entity_table, jnp.float32))


def noise_of_negatives(knowledge: Array) -> jax.Array:
    """Noise lambda_ij in [0, 1] of the negative pair (i, j): positive part of their knowledge's cosine.

    Args:
        knowledge: [B,E], unit rows or zeros. No gradient flows into it.

    Returns:
        [B,B] float32, 0 on the diagonal and for samples without knowledge.
    """
    states = jax.lax.stop_gradient(jnp.asarray(knowledge, jnp.float32))
    cosines = jnp.matmul(states, states.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(cosines, 0.0, 1.0) * (1 - jnp.eye(states.shape[0]))


def enhanced_contrast(
    logits: Array,
    noise: Array,
    *,
    image_to_text_weight: float = 0.5,
    example_mask: Array | None = None,
) -> jax.Array:
    """L = -mean_i log [e^{s_ii} / (e^{s_ii} + sum_{j != i} (1 - lambda_ij) e^{s_ij})], both directions.

    Args:
        logits: [B,B] scaled similarities, images in rows; noise: [B,B] lambda, see `noise_of_negatives`.
        image_to_text_weight: share of the image-to-text direction.
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.

    Returns:
        float32 scalar; InfoNCE where all noise is 0, and 0 where it is 1 for all other rows.
    """
    logits = jnp.asarray(logits, jnp.float32)
    own = jnp.eye(logits.shape[0], dtype=bool)
    keep = jnp.where(own, 1.0, 1.0 - jnp.asarray(noise, jnp.float32))
    if example_mask is not None:
        real = jnp.asarray(example_mask) > 0
        keep = jnp.where(own | (real[:, None] & real[None, :]), keep, 0.0)
    shift = jnp.where(keep > 0, jnp.log(jnp.where(keep > 0, keep, 1.0)), OFF)
    weights = row_weights(example_mask, logits.shape[0])

    def one_way(scores: jax.Array, shifts: jax.Array) -> jax.Array:
        total = jax.nn.logsumexp(scores + shifts, axis=1)
        return jnp.sum(weights * (total - jnp.diagonal(scores)))

    to_text, to_image = one_way(logits, shift), one_way(logits.T, shift.T)
    return image_to_text_weight * to_text + (1 - image_to_text_weight) * to_image


def knowledge_guidance(
    image_embed: Array,
    text_embed: Array,
    knowledge_embed: Array,
    logit_scale: Array | float,
    *,
    present: Array | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """Mean of InfoNCE between images and knowledge and between texts and knowledge.

    Args:
        image_embed, text_embed, knowledge_embed: [B,D], L2-normalised.
        logit_scale: inverse temperature.
        present: [B], 1 where a sample has any knowledge; the others take no part.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar, 0 when no sample has knowledge.
    """
    mask = jnp.ones((image_embed.shape[0],), jnp.float32)
    for given in (present, example_mask):
        if given is not None:
            mask = mask * (jnp.asarray(given) > 0)
    sides = [
        info_nce(side, knowledge_embed, logit_scale, example_mask=mask)
        for side in (image_embed, text_embed)
    ]
    return (sides[0] + sides[1]) / 2
