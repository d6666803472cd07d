"""From token states to fewer vectors: pooling over tokens, layers and word pieces.

Only `AttentionPool` and `MapPool` have parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers
from medvlp_jax.types import Array


def masked_mean(tokens: Array, mask: Array) -> Array:
    """Mean of tokens [B, L, D] where mask [B, L] is nonzero -> [B, D]; zeros for an empty row."""
    keep = (mask != 0)[..., None]
    total = jnp.sum(jnp.where(keep, tokens, 0).astype(jnp.float32), axis=1)
    return (total / jnp.maximum(keep.sum(axis=1), 1)).astype(tokens.dtype)


def masked_max(tokens: Array, mask: Array) -> Array:
    """Maximum per feature of tokens [B, L, D] where mask [B, L] is nonzero -> [B, D]; zeros for an empty row.

    ConVIRT pools its text encoder this way (arXiv 2010.00747, section 3.2).
    """
    keep = (mask != 0)[..., None]
    highest = jnp.max(jnp.where(keep, tokens, jnp.finfo(tokens.dtype).min), axis=1)
    return jnp.where(keep.any(axis=1), highest, 0)


def last_position(mask: Array) -> Array:
    """Position of the last nonzero entry of each row of mask [B, L] -> [B] int32; 0 for an empty row."""
    return jnp.max(jnp.where(mask != 0, jnp.arange(mask.shape[1]), 0), axis=1).astype(jnp.int32)


def eos_position(input_ids: Array, mask: Array, eos_token_id: int | None) -> Array:
    """Position of the end-of-text token of each row, by the two rules of CLIP's implementations.

    Args:
        input_ids: [B, L]; mask: [B, L], nonzero for real tokens. Padding is never chosen.
        eos_token_id: the first position with this id, or the last real token of a text that was cut off
            before it. None = the first position of the row's highest id (OpenAI's code, where the
            end-of-text token is the last of the vocabulary).

    Returns:
        [B] int32; 0 for a row without any token.
    """
    real = mask != 0
    if eos_token_id is None:
        return jnp.argmax(jnp.where(real, input_ids, -1), axis=1).astype(jnp.int32)
    found = real & (input_ids == eos_token_id)
    first = jnp.argmax(found, axis=1).astype(jnp.int32)
    return jnp.where(found.any(axis=1), first, last_position(mask))


def take_position(tokens: Array, position: Array) -> Array:
    """The state of tokens [B, L, D] at position [B] of each row -> [B, D]."""
    return jnp.take_along_axis(tokens, position[:, None, None], axis=1)[:, 0]


def pool_sentences(
    tokens: Array, sentence_ids: Array, count: int, method: str = "mean"
) -> tuple[Array, Array]:
    """One state per sentence: the mean or the maximum (LoVT, arXiv 2112.02889) of its tokens.

    Args:
        tokens: [B, L, D] states of the pieces.
        sentence_ids: [B, L] sentence of each piece, counted from 0; -1 for special tokens and padding.
        count: S, sentences kept of each text; further ones are left out.
        method: "mean" or "max".

    Returns:
        sentences [B, S, D], zeros where there is none; sentence_mask [B, S] float32.
    """
    if method not in ("mean", "max"):
        raise UserError(f"sentence pooling {method!r} is unknown; choose mean or max")
    pool = masked_mean if method == "mean" else masked_max

    def one(sentence: Array) -> tuple[Array, Array]:
        member = sentence_ids == sentence
        return pool(tokens, member), member.any(axis=1).astype(jnp.float32)

    # One sentence at a time: S copies of the tokens at once would not fit.
    states, mask = jax.lax.map(one, jnp.arange(count, dtype=sentence_ids.dtype))
    return states.swapaxes(0, 1), mask.swapaxes(0, 1)


class AttentionPool(nn.Module):
    """One learned query attends to the tokens (pooling by multi-head attention, arXiv 1810.00825, eq. 11).

    Of the paper's block only the attention itself: no residual, no feed-forward. The query starts small, so
    that at first it is nearly a mean of the tokens' values.
    """

    heads: int
    dropout: float = 0.0
    kernel_init: layers.Initializer = nn.initializers.xavier_uniform()
    implementation: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """Maps tokens [B, L, D], of which those with nonzero mask [B, L] count, to [B, D]."""
        shape = (1, 1, tokens.shape[-1])
        query = self.param("query", nn.initializers.normal(0.02), shape, jnp.float32)
        pooled, _ = layers.MultiHeadAttention(
            self.heads,
            dropout=self.dropout,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )(
            jnp.broadcast_to(query, (tokens.shape[0], *shape[1:])).astype(self.dtype),
            tokens,
            mask,
            train=train,
        )
        return pooled[:, 0]


class MapPool(nn.Module):
    """Multi-head attention pooling of SigLIP (arXiv 2303.15343; the head of 2106.04560, section 2.2).

    A learned probe attends to the tokens -> y; the result is y + MLP(LN(y)). No residual around the
    attention, unlike the block of arXiv 1810.00825.
    """

    heads: int
    mlp_dim: int
    eps: float = 1e-6
    activation: str = "gelu"
    kernel_init: layers.Initializer = nn.initializers.xavier_uniform()
    implementation: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """Maps tokens [B, L, D], of which those with nonzero mask [B, L] count, to [B, D]."""
        shape = (1, 1, tokens.shape[-1])
        probe = self.param("probe", nn.initializers.xavier_uniform(), shape, jnp.float32)
        y, _ = layers.MultiHeadAttention(
            self.heads,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )(
            jnp.broadcast_to(probe, (tokens.shape[0], *shape[1:])).astype(self.dtype),
            tokens,
            mask,
            train=False,  # the attention has no dropout, so nothing differs in training
        )
        normed = layers.LayerNorm(self.eps, self.dtype, name="norm")(y)
        mlp = layers.Mlp(
            self.mlp_dim,
            activation=self.activation,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="mlp",
        )
        return (y + mlp(normed))[:, 0]


def sum_last_layers(hidden: Sequence[Array], count: int) -> Array:
    """Sum of the last `count` entries of hidden, each [B, L, D] -> [B, L, D] (GLoRIA sums the last 4)."""
    if not 1 <= count <= len(hidden):
        raise UserError(
            f"last_layers={count}, but the encoder returns {len(hidden)} hidden states (embeddings "
            f"included); choose 1 to {len(hidden)}"
        )
    total = hidden[-count]
    for states in hidden[len(hidden) - count + 1 :]:
        total = total + states
    return total


def merge_word_pieces(tokens: Array, word_ids: Array) -> tuple[Array, Array]:
    """Sums the states of the pieces of each word, as GLoRIA and MGCA do.

    Args:
        tokens: [B, L, D] states, or weights with D = 1.
        word_ids: [B, L] index of the word a piece belongs to, counted from 0 within its row; -1 for special
            tokens and padding, which are left out.

    Returns:
        words [B, L, D]: position w holds the sum over the pieces with word_ids == w, zeros where there is
        no such word; word_mask [B, L] float32: 1 where there is one.
    """
    words = jnp.arange(tokens.shape[1])[:, None]
    member = word_ids[:, None, :] == words  # [B, word, piece]
    # A matrix product instead of a scatter: its gradient is a matrix product too, on every backend.
    summed = jnp.einsum(
        "bwl,bld->bwd", member.astype(tokens.dtype), tokens, precision=jax.lax.Precision.HIGHEST
    )
    return summed, member.any(-1).astype(jnp.float32)
