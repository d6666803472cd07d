"""What a token sees in the other modality: its context, a sum over the tokens there (AttnGAN, 1711.10485).

The local losses of GLoRIA, LIMITR and JoImTeR-Net compare each token with its context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from medvlp_jax.types import Array

OFF = -1e30
"""Score of what takes no part in a softmax: finite, so that it never meets inf - inf."""


def masked_softmax(scores: Array, mask: Array | None, axis: int) -> jax.Array:
    """Softmax in float32 over the entries whose mask is nonzero; the others get exactly 0.

    Args:
        scores: any shape.
        mask: broadcasts against `scores`, nonzero = takes part; None = all do.
        axis: of the softmax; all zeros where nothing takes part.
    """
    scores = jnp.asarray(scores, jnp.float32)
    if mask is None:
        return jax.nn.softmax(scores, axis=axis)
    keep = jnp.asarray(mask) > 0
    return jnp.where(keep, jax.nn.softmax(jnp.where(keep, scores, OFF), axis=axis), 0.0)


def attention_weights(
    queries: Array,
    keys: Array,
    *,
    query_mask: Array | None = None,
    key_mask: Array | None = None,
    scale: Array | float = 1.0,
    queries_first: bool = False,
) -> jax.Array:
    """Attention a_qk of every query over the keys.

    a = softmax_k(scale * s) with s = <query, key> (GLoRIA, eq. of a_ij), or, with `queries_first`,
    a = softmax_k(scale * softmax_q(s)): the scores first compete over the queries (AttnGAN, eq. 8 and 9,
    and all code derived from it).

    Args:
        queries: [..., Q, D]; keys: [..., K, D], as they are (not normalised here).
        query_mask: [..., Q], nonzero for real tokens; key_mask: [..., K], or [..., Q, K] for each query.
        scale: inverse temperature (`temp1`).
        queries_first: see above.

    Returns:
        [..., Q, K] float32; 0 on padded keys.
    """
    queries, keys = jnp.asarray(queries, jnp.float32), jnp.asarray(keys, jnp.float32)
    scores = jnp.einsum("...qd,...kd->...qk", queries, keys, precision="highest")
    if queries_first:
        mask = None if query_mask is None else jnp.asarray(query_mask)[..., :, None]
        scores = masked_softmax(scores, mask, axis=-2)
    mask = None if key_mask is None else jnp.asarray(key_mask)
    if mask is not None and mask.ndim < scores.ndim:
        mask = mask[..., None, :]
    return masked_softmax(jnp.asarray(scale, jnp.float32) * scores, mask, axis=-1)


def weighted_sum(weights: Array, tokens: Array) -> jax.Array:
    """Contexts [..., Q, D]: for each query the sum of tokens [..., K, D] with weights [..., Q, K]."""
    tokens = jnp.asarray(tokens, jnp.float32)
    return jnp.einsum("...qk,...kd->...qd", weights, tokens, precision="highest")


def map_texts(function: Callable[..., Any], texts: tuple[Array, ...], tile: int | None) -> Any:
    """Applies a function to some texts at a time, to bound the memory of what it computes in between.

    Args:
        function: maps the arrays [T,...] of `texts` to arrays (any tree) whose first axis is T.
        texts: arrays [B,...].
        tile: T; B need not be a multiple (the last tile is filled up with zeros). None = all at once. The
            backward pass computes each tile again.

    Returns:
        the arrays [B,...] of the function.
    """
    rows = texts[0].shape[0]
    if tile is None or tile >= rows:
        return function(*texts)
    padding = -rows % tile
    blocks = tuple(
        jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, tile, *x.shape[1:])
        for x in texts
    )
    parts = jax.lax.map(lambda block: jax.checkpoint(function)(*block), blocks)
    return jax.tree.map(lambda x: x.reshape(rows + padding, *x.shape[2:])[:rows], parts)
