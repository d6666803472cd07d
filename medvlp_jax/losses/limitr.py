"""External and internal local losses of LIMITR (arXiv 2303.11755).

External: words with the regions they see, and regions with the words they see, matched across the batch by
scores that a small attention over similarities computes. Internal: the same contexts matched within a pair.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import (
    attention_weights,
    map_texts,
    masked_softmax,
    weighted_sum,
)
from medvlp_jax.losses.info_nce import matching_cross_entropies, row_weights
from medvlp_jax.losses.token_alignment import match_contexts, normalise
from medvlp_jax.losses.word_region import rows_with_words
from medvlp_jax.types import Array


class Filtration(NamedTuple):
    """Weights of the attention over similarities, all [D,D] and [D] but the two scalars' biases [].

    Both sides share them, except for `out`, the last layer's kernel [D] and bias [].
    """

    local_kernel: Array
    local_bias: Array
    mean_kernel: Array
    mean_bias: Array
    common_kernel: Array
    common_bias: Array
    out_kernel: Array
    out_bias: Array


def filtered_score(tokens: Array, context: Array, mask: Array | None, w: Filtration) -> jax.Array:
    """Score in (0, 1) of a set of tokens with what they see.

    s_k = unit(x_k * c_k) elementwise; s_k and its mean over k, each through tanh of a linear layer, are
    multiplied and give by a linear layer the softmax weights a_k; the score is
    sigmoid(out . unit(sum_k a_k s_k)).

    Args:
        tokens, context: [..., K, D]; mask: [..., K], 1 for real tokens, None = all are.
        w: weights.

    Returns:
        [...] float32.
    """
    similarity = normalise(jnp.asarray(tokens, jnp.float32) * context)
    real = jnp.ones(similarity.shape[:-1]) if mask is None else (jnp.asarray(mask) > 0) * 1.0
    real = jnp.broadcast_to(real, similarity.shape[:-1])
    similarity = similarity * real[..., None]
    mean = similarity.sum(axis=-2) / jnp.maximum(real.sum(axis=-1), 1.0)[..., None]
    local = jnp.tanh(jnp.matmul(similarity, w.local_kernel, precision="highest") + w.local_bias)
    whole = jnp.tanh(jnp.matmul(mean, w.mean_kernel, precision="highest") + w.mean_bias)
    common = jnp.sum(local * whole[..., None, :] * w.common_kernel, axis=-1) + w.common_bias
    weights = masked_softmax(common, real, axis=-1)
    pooled = normalise(jnp.sum(weights[..., None] * similarity, axis=-2))
    return jax.nn.sigmoid(jnp.sum(pooled * w.out_kernel, axis=-1) + w.out_bias)


def limitr_scores(
    image_token_embed: Array,
    text_token_embed: Array,
    text_token_mask: Array,
    words: Filtration,
    regions: Filtration,
    *,
    temp1: float = 4.0,
    tile: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scores of every image with every text, from the words' side and from the regions' side.

    Args:
        image_token_embed: [B,N,D]; text_token_embed: [B,L,D], not normalised.
        text_token_mask: [B,L], 1 for real words.
        words, regions: weights of the two sides.
        temp1: inverse temperature of the attention, whose scores compete over the queries first.
        tile: texts at a time, see `map_texts`; None = all.

    Returns:
        two arrays [B,B] float32, images in rows.
    """
    image = jnp.asarray(image_token_embed, jnp.float32)

    def against(text: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
        text, mask = text[:, None], mask[:, None]
        contexts = both_contexts(image, text, mask, temp1=temp1)
        return (
            filtered_score(text, contexts[0], mask, words),
            filtered_score(image, contexts[1], None, regions),
        )

    texts = jnp.asarray(text_token_embed, jnp.float32), jnp.asarray(text_token_mask)
    by_words, by_regions = map_texts(against, texts, tile)
    return by_words.T, by_regions.T


def both_contexts(
    image: Array, text: Array, mask: Array, *, temp1: float
) -> tuple[jax.Array, jax.Array]:
    """What each word sees in the image [..., L, D], and each region in the text [..., N, D]."""
    to_regions = attention_weights(text, image, query_mask=mask, scale=temp1, queries_first=True)
    to_words = attention_weights(image, text, key_mask=mask, scale=temp1, queries_first=True)
    return weighted_sum(to_regions, image), weighted_sum(to_words, text)


def released_contexts(
    image: Array, text: Array, mask: Array, *, temp1: float
) -> tuple[jax.Array, jax.Array]:
    """`both_contexts` as the internal loss of the released code has them.

    Padding words compete for the regions. The words that region n of row b may see are those of the text of
    row (b N + n) mod B: the code repeats the masks of the batch in the wrong order.
    """
    rows, count = image.shape[:2]
    shuffled = mask[jnp.arange(rows * count) % rows].reshape(rows, count, -1)
    to_regions = attention_weights(text, image, scale=temp1, queries_first=True)
    to_words = attention_weights(image, text, key_mask=shuffled, scale=temp1, queries_first=True)
    return weighted_sum(to_regions, image), weighted_sum(to_words, text)


def limitr_external(
    by_words: Array,
    by_regions: Array,
    text_token_mask: Array | None = None,
    *,
    temp3: Array | float = 10.0,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE on temp3 times each of the two scores, averaged over both; LIMITR adds the directions.

    Args:
        by_words, by_regions: [B,B], images in rows.
        text_token_mask: [B,L]; a row without words is no anchor and no candidate. None = all have some.
        temp3: inverse temperature.
        example_mask: [B], 1 for real rows.
        drop_negatives: [B,B] True for pairs that are no negatives.

    Returns:
        image-to-text and text-to-image losses, float32 scalars.
    """
    if text_token_mask is not None:
        example_mask = rows_with_words(text_token_mask, example_mask)
    masks = dict(example_mask=example_mask, drop_negatives=drop_negatives)
    scale = jnp.asarray(temp3, jnp.float32)
    pairs = [matching_cross_entropies(scale * x, **masks) for x in (by_words, by_regions)]
    return (pairs[0][0] + pairs[1][0]) / 2, (pairs[0][1] + pairs[1][1]) / 2


def limitr_internal(
    image_token_embed: Array,
    text_token_embed: Array,
    *,
    text_token_mask: Array,
    image_weights: Array | None = None,
    text_weights: Array | None = None,
    temp1: float = 4.0,
    temperature: float = 0.1,
    scale: float = 0.1,
    variant: Literal["paper", "released"] = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Each word must pick its own context among those of all words of its text, each region its own.

    Args:
        image_token_embed: [B,N,D]; text_token_embed: [B,L,D], not normalised: logits are plain products.
        text_token_mask: [B,L], 1 for real words.
        image_weights: [B,N]; text_weights: [B,L], rows sum to 1; None = all tokens weigh the same.
        temp1: inverse temperature of the attention; temperature: of the contrast.
        scale: factor of the loss (the released code divides by 10).
        variant: "released" keeps padding words as candidates and has the contexts of `released_contexts`, so
            that its value depends on the order of the batch; its launch gives this loss the weight 0.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar: scale / 2 * (word loss + region loss).
    """
    image = jnp.asarray(image_token_embed, jnp.float32)
    text = jnp.asarray(text_token_embed, jnp.float32)
    real = jnp.asarray(text_token_mask) > 0
    paper = variant == "paper"
    contexts = both_contexts if paper else released_contexts
    word_context, region_context = contexts(image, text, real, temp1=temp1)
    if text_weights is None:
        text_weights = real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    if image_weights is None:
        image_weights = jnp.full(image.shape[:2], 1.0 / image.shape[1])
    words = match_contexts(text, word_context, text_weights, temperature, real if paper else None)
    regions = match_contexts(image, region_context, image_weights, temperature, None)
    rows = row_weights(rows_with_words(real, example_mask), image.shape[0])
    return scale * jnp.sum(jnp.where(rows > 0, rows * (words + regions), 0.0)) / 2
