"""Alignment and uniformity on the sphere (Wang and Isola, arXiv 2005.10242), also within each sample.

Mueller et al. (arXiv 2211.07254) replace the negatives of LoVT's local contrast by a prior on how the
regions, and the sentences, of each sample are spread: their uniformity, without contrast of modalities.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array


def alignment(
    first: Array,
    second: Array,
    *,
    alpha: float = 2.0,
    mask: Array | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """L_align = E ||x - y||^alpha over positive pairs (section 4.1).

    Args:
        first, second: [B,D], or [B,K,D] for pairs within samples; normalised here.
        alpha: exponent.
        mask: [B,K], 1 for real pairs of a sample, whose mean counts; None = all are.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    square = jnp.sum((normalise(first) - normalise(second)) ** 2, axis=-1)
    some = square > 0  # the root has no gradient at 0
    power = jnp.where(some, jnp.where(some, square, 1.0) ** (alpha / 2), 0.0)
    if power.ndim > 1:
        real = jnp.ones(power.shape) if mask is None else (jnp.asarray(mask) > 0) * 1.0
        power = jnp.sum(real * power, axis=1) / jnp.maximum(real.sum(axis=1), 1.0)
    return jnp.sum(row_weights(example_mask, power.shape[0]) * power)


def uniformity(embed: Array, *, t: float = 2.0, example_mask: Array | None = None) -> jax.Array:
    """L_uniform = log E exp(-t ||x - y||^2) over all pairs of different rows (section 4.2).

    Args:
        embed: [B,D], normalised here.
        t: sharpness of the Gaussian potential.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar <= 0; 0 where there is no pair.
    """
    mask = None if example_mask is None else jnp.asarray(example_mask)[None]
    return _log_potential(jnp.asarray(embed)[None], mask, t)[0]


def local_uniformity(
    tokens: Array,
    mask: Array | None = None,
    *,
    t: float = 2.0,
    example_mask: Array | None = None,
) -> jax.Array:
    """Uniformity of the elements of each sample, mean over the samples.

    Args:
        tokens: [B,K,D], regions or sentences, normalised here.
        mask: [B,K], 1 for real elements; None = all are.
        t: sharpness of the Gaussian potential.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar <= 0; a sample with fewer than two elements counts as 0.
    """
    values = _log_potential(tokens, mask, t)
    return jnp.sum(row_weights(example_mask, values.shape[0]) * values)


def _log_potential(tokens: Array, mask: Array | None, t: float) -> jax.Array:
    """[B] log of the mean potential over the pairs of different real elements of [B,K,D]."""
    x = normalise(tokens)
    count = x.shape[1]
    square = jnp.sum(x * x, axis=-1)
    cross = jnp.einsum("bkd,bld->bkl", x, x, precision="highest")
    distance = jnp.maximum(square[:, :, None] + square[:, None, :] - 2 * cross, 0.0)
    pair = jnp.broadcast_to(~jnp.eye(count, dtype=bool), distance.shape)
    if mask is not None:
        real = jnp.asarray(mask) > 0
        pair = pair & real[:, :, None] & real[:, None, :]
    number = pair.sum(axis=(1, 2))
    total = jax.nn.logsumexp(jnp.where(pair, -t * distance, OFF), axis=(1, 2))
    return jnp.where(number > 0, total - jnp.log(jnp.maximum(number, 1)), 0.0)
