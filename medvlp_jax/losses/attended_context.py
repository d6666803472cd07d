"""What a token sees in the other modality: its context, a sum over the tokens there (AttnGAN, 1711.10485).

The local losses of GLoRIA, LIMITR and JoImTeR-Net compare each token with its context.
"""

from __future__ import annotations

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
        query_mask: [..., Q]; key_mask: [..., K], nonzero for real tokens.
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
    mask = None if key_mask is None else jnp.asarray(key_mask)[..., None, :]
    return masked_softmax(jnp.asarray(scale, jnp.float32) * scores, mask, axis=-1)


def weighted_sum(weights: Array, tokens: Array) -> jax.Array:
    """Contexts [..., Q, D]: for each query the sum of tokens [..., K, D] with weights [..., Q, K]."""
    tokens = jnp.asarray(tokens, jnp.float32)
    return jnp.einsum("...qk,...kd->...qd", weights, tokens, precision="highest")
