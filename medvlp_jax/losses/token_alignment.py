"""Token-wise alignment inside each pair (MGCA, arXiv 2210.06044, eq. 3-5)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array

_OFF = -1e30


def normalise(x: Array, eps: float = 1e-12) -> jax.Array:
    """L2-normalises the last axis in float32; zero vectors stay zero and get no gradient."""
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # Merged words leave zero vectors behind; dividing those by eps would give gradients of 1 / eps.
    some = square > eps * eps
    return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)


def clipped_weights(attention: Array, low: float = 0.1, high: float = 0.9) -> jax.Array:
    """Clips each row's non-zero entries to their percentiles and divides by the row's sum.

    Args:
        attention: [B,T] non-negative weights, 0 = no token.
        low, high: quantiles (linear interpolation, as `torch.quantile`).

    Returns:
        [B,T]; rows sum to 1 (to 0 where there is no token). Without gradient.
    """
    values = jax.lax.stop_gradient(jnp.asarray(attention, jnp.float32))
    present = values != 0
    ordered = jnp.sort(jnp.where(present, values, jnp.inf), axis=1)
    count = present.sum(axis=1, keepdims=True)

    def quantile(q: float) -> jax.Array:
        place = q * jnp.maximum(count - 1, 0)
        below = jnp.floor(place).astype(jnp.int32)
        above = jnp.ceil(place).astype(jnp.int32)
        a = jnp.take_along_axis(ordered, below, axis=1)
        b = jnp.take_along_axis(ordered, above, axis=1)
        return jnp.where(count > 0, a + (b - a) * (place - below), 0.0)

    clipped = jnp.where(present, jnp.clip(values, quantile(low), quantile(high)), 0.0)
    return clipped / jnp.maximum(clipped.sum(axis=1, keepdims=True), 1e-12)


def token_alignment(
    image_token_embed: Array,
    text_token_embed: Array,
    *,
    image_weights: Array,
    text_weights: Array,
    text_token_mask: Array,
    temperature: float = 0.1,
    variant: Literal["paper", "released"] = "paper",
    normalise_patch_context: bool | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """Bidirectional cross-attention alignment of words and patches.

    Each word attends to the patches and must pick its own context among the contexts of all words of the
    same report, and the reverse; the same for patches. L = L_word + L_patch, each averaged over the batch.

    Args:
        image_token_embed: [B,N,D], not normalised.
        text_token_embed: [B,L,D], not normalised.
        image_weights: [B,N], weight of each patch, rows sum to 1.
        text_weights: [B,L], weight of each word, rows sum to 1, 0 on padding.
        text_token_mask: [B,L], 1 for real words.
        temperature: tau_2, of the attention and of the contrast.
        variant: "paper" leaves padding words out everywhere; "released" keeps them as negatives of the
            word direction, as the released code does.
        normalise_patch_context: whether the text context of a patch is normalised. Default: yes in the
            paper (cosine), and as the released code for ViT, no, in "released" (its ResNet does).
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    patches, words = normalise(image_token_embed), normalise(text_token_embed)
    real = jnp.asarray(text_token_mask) > 0
    released = variant == "released"
    if normalise_patch_context is None:
        normalise_patch_context = not released
    scores = jnp.einsum("bld,bnd->bln", words, patches, precision="highest") / temperature
    to_patches = jax.nn.softmax(scores, axis=2)
    word_context = normalise(jnp.einsum("bln,bnd->bld", to_patches, patches, precision="highest"))
    to_words = jax.nn.softmax(jnp.where(real[:, :, None], scores, _OFF), axis=1)
    patch_context = jnp.einsum("bln,bld->bnd", to_words, words, precision="highest")
    if normalise_patch_context:
        patch_context = normalise(patch_context)
    candidates = None if released else real
    word_loss = match_contexts(words, word_context, text_weights, temperature, candidates)
    patch_loss = match_contexts(patches, patch_context, image_weights, temperature, None)
    return jnp.sum(row_weights(example_mask, words.shape[0]) * (word_loss + patch_loss))


def match_contexts(
    tokens: Array, context: Array, weights: Array, temperature: float, candidates: Array | None
) -> jax.Array:
    """Weighted symmetric cross entropy [B] of "token k belongs to context k" within each row.

    Args:
        tokens, context: [B,K,D]; logits are their products / temperature.
        weights: [B,K] of the tokens.
        temperature: of the contrast.
        candidates: [B,K] bool, tokens and contexts that count as candidates; None = all do.
    """
    logits = jnp.einsum("bkd,bmd->bkm", tokens, context, precision="highest") / temperature
    forward, backward = logits, logits.swapaxes(1, 2)
    if candidates is not None:
        keep = candidates[:, None, :] | jnp.eye(logits.shape[1], dtype=bool)
        forward, backward = jnp.where(keep, forward, _OFF), jnp.where(keep, backward, _OFF)
    diagonal = jnp.diagonal(logits, axis1=1, axis2=2)
    both = _log_sum_exp(forward, axis=2) + _log_sum_exp(backward, axis=2) - 2 * diagonal
    return jnp.sum(weights * both, axis=1) / 2


def _log_sum_exp(x: Array, axis: int) -> jax.Array:
    """log sum exp that survives logits of 1e9, as products of tokens that are not normalised can be.

    A compiler may compute the logits twice, rounded differently, and so find all of them far above or below
    their own maximum. That counts as 1 in the sum, so a sum far below 1 is such a case and replaced by 1.
    """
    top = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    below = x - top
    below = below - jax.lax.stop_gradient(jnp.maximum(below, 0.0))
    total = jnp.sum(jnp.exp(below), axis=axis)
    return jnp.log(jnp.where(total > 0.5, total, 1.0)) + jnp.squeeze(top, axis)
