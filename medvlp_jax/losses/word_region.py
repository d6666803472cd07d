"""Contrast of words and image regions across the batch (GLoRIA, ICCV 2021, section 3.3).

BioViL-L (arXiv 2204.09817) and BioViL-T (2301.04558) add this loss to the global one, JoImTeR-Net (MLMI 2021)
joins it with a triplet loss on the same scores. The equations go back to AttnGAN (1711.10485, eq. 7-11).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import (
    OFF,
    attention_weights,
    map_texts,
    weighted_sum,
)
from medvlp_jax.losses.info_nce import matching_cross_entropies, row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array

Aggregation = Literal["lse", "sum", "mean"]


def aggregate(
    similarity: Array, mask: Array, *, temp2: float = 5.0, agg: Aggregation = "lse"
) -> jax.Array:
    """Score Z of an image and a text from the similarities of its words to their contexts.

    "lse": Z = 1/temp2 log sum_w exp(temp2 s_w), as in the paper: between max_w s_w and log(W) / temp2 more;
    "sum": Z = log sum_w exp(temp2 s_w), as in the released code; "mean": Z = log mean_w exp(temp2 s_w), its
    option. Sums grow with the number of words, so they favour long texts.

    Args:
        similarity: [..., L] cosines.
        mask: [..., L], nonzero for real words.
        temp2: emphasis on the most similar words.
        agg: see above.

    Returns:
        [...] float32; 0 for a text without words.
    """
    keep = jnp.broadcast_to(jnp.asarray(mask) > 0, similarity.shape)
    count = keep.sum(axis=-1)
    scaled = temp2 * jnp.asarray(similarity, jnp.float32)
    total = jax.nn.logsumexp(jnp.where(keep, scaled, OFF), axis=-1)
    total = jnp.where(count > 0, total, 0.0)
    if agg == "lse":
        return total / temp2
    return total - jnp.log(jnp.maximum(count, 1)) if agg == "mean" else total


def word_region_scores(
    image_token_embed: Array,
    text_token_embed: Array,
    text_token_mask: Array,
    *,
    temp1: float = 4.0,
    temp2: float = 5.0,
    variant: Literal["paper", "released"] = "paper",
    agg: Aggregation | None = None,
    words_first: bool | None = None,
    image_token_mask: Array | None = None,
    tile: int | None = None,
) -> jax.Array:
    """Score Z_ij of every image i with every text j.

    Word w of text j attends to the regions of image i; its cosine to this context c_w enters `aggregate`.

    Args:
        image_token_embed: [Bi,N,D]; text_token_embed: [Bt,L,D], both not normalised.
        text_token_mask: [Bt,L], 1 for real words.
        temp1: inverse temperature of the attention.
        temp2: see `aggregate`.
        variant: "paper" attends by one softmax over the regions and aggregates by "lse"; "released" takes
            a softmax over the words first and aggregates by "sum".
        agg, words_first: other choices than those of `variant`.
        image_token_mask: [Bi,N], 1 for real regions; None = all are.
        tile: texts at a time. The memory then holds Bi x tile x L x N attention weights instead of
            Bi x Bt x L x N, in the backward pass too, which computes them again. None = all at once.

    Returns:
        [Bi,Bt] float32, images in rows.
    """
    released = variant == "released"
    chosen: Aggregation = agg or ("sum" if released else "lse")
    first = released if words_first is None else words_first

    def against(words: Array, mask: Array) -> jax.Array:
        words, mask = words[:, None], mask[:, None]
        weights = attention_weights(
            words,
            image_token_embed,
            query_mask=mask,
            key_mask=image_token_mask,
            scale=temp1,
            queries_first=first,
        )
        context = normalise(weighted_sum(weights, image_token_embed))
        cosine = jnp.sum(normalise(words) * context, axis=-1)
        return aggregate(cosine, mask, temp2=temp2, agg=chosen)  # [texts, Bi]

    texts = jnp.asarray(text_token_embed), jnp.asarray(text_token_mask)
    return map_texts(against, texts, tile).T


def word_region(
    scores: Array,
    text_token_mask: Array,
    *,
    temp3: Array | float = 10.0,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Local loss of GLoRIA: InfoNCE on the scores temp3 * Z_ij. The paper adds the two directions.

    Args:
        scores: [B,B] of `word_region_scores`.
        text_token_mask: [B,L], 1 for real words. A row without words is no anchor and no candidate. The
            texts of the released code hold [CLS] as first word.
        temp3: inverse temperature of the contrast.
        example_mask: [B], 1 for real rows.
        drop_negatives: [B,B] True for pairs that are no negatives.

    Returns:
        image-to-text and text-to-image losses, float32 scalars.
    """
    return matching_cross_entropies(
        jnp.asarray(temp3, jnp.float32) * scores,
        example_mask=rows_with_words(text_token_mask, example_mask),
        drop_negatives=drop_negatives,
    )


def rows_with_words(text_token_mask: Array, example_mask: Array | None = None) -> jax.Array:
    """[B] float32: 1 for the real rows whose text has a word (or sentence); text_token_mask [B,L]."""
    some = jnp.any(jnp.asarray(text_token_mask) > 0, axis=-1).astype(jnp.float32)
    return some if example_mask is None else some * jnp.asarray(example_mask, jnp.float32)


def matching_triplet(
    scores: Array,
    *,
    margin: float = 0.5,
    negatives: Array | None = None,
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Triplet loss of JoImTeR-Net: max(0, margin - S_ii + S_ij), for images and for texts as anchors.

    Args:
        scores: [B,B], images in rows: `word_region_scores` or cosines of the global embeddings.
        margin: by which the own partner must lead.
        negatives: [B] row of each anchor's negative (drawn at random in the released code); None averages
            over all other real rows, the mean of what random negatives give.
        example_mask: [B], 1 for real rows.

    Returns:
        image-anchored and text-anchored losses, float32 scalars; 0 where no row has a negative.
    """
    scores = jnp.asarray(scores, jnp.float32)
    rows = scores.shape[0]
    real = row_weights(example_mask, rows) > 0
    chosen = ~jnp.eye(rows, dtype=bool)
    if negatives is not None:
        chosen &= jnp.asarray(negatives)[:, None] == jnp.arange(rows)
    chosen &= real[:, None] & real[None, :]
    share = chosen / jnp.maximum(chosen.sum(axis=1, keepdims=True), 1)
    share = share / jnp.maximum(real.sum(), 1)
    own = jnp.diagonal(scores)[:, None]
    return (
        jnp.sum(share * jax.nn.relu(margin - own + scores)),
        jnp.sum(share * jax.nn.relu(margin - own + scores.T)),
    )
