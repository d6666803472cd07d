"""Negative cosine with stop-gradient (SimSiam, arXiv 2011.10566, eq. 1-3), as PRIOR uses it on regions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array


def simsiam(
    first: Array,
    second: Array,
    predicted_first: Array,
    predicted_second: Array,
    *,
    mask: Array | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """L = -1/2 [cos(p(x), sg(y)) + cos(p(y), sg(x))], mean over the elements of each row and the rows.

    PRIOR (arXiv 2307.12577, section 3.2): x a region, y what it sees in the report, p one predictor for both.
    No negatives: neighbouring regions overlap.

    Args:
        first, second: x and y, [B,D] or [B,K,D].
        predicted_first, predicted_second: p(x) and p(y), of the same shapes.
        mask: [B,K], 1 for real elements; None = all are.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar in [-1, 1].
    """
    x, y, px, py = (normalise(z) for z in (first, second, predicted_first, predicted_second))
    sg = jax.lax.stop_gradient
    value = -(jnp.sum(px * sg(y), axis=-1) + jnp.sum(py * sg(x), axis=-1)) / 2
    if value.ndim > 1:
        real = jnp.ones(value.shape) if mask is None else (jnp.asarray(mask) > 0) * 1.0
        value = jnp.sum(real * value, axis=1) / jnp.maximum(real.sum(axis=1), 1.0)
    return jnp.sum(row_weights(example_mask, value.shape[0]) * value)
