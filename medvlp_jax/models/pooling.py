"""From token states to fewer vectors: pooling over tokens, layers and word pieces. No parameters."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
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
