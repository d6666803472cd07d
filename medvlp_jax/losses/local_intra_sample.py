"""Contrast of regions, and of sentences, within each sample (LoVT, arXiv 2112.02889, section 3.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array


def spatial_positives(
    height: int,
    width: int,
    *,
    threshold: float = 0.5,
    relative: bool = True,
    smooth: bool = True,
    decay: float = 1.0,
) -> np.ndarray:
    """Weight of every region as a positive of every other one: exp(-decay * d) up to a distance.

    Args:
        height, width: of the grid, regions row by row.
        threshold: largest distance d of a positive.
        relative: measures d in diagonals of the grid, sqrt(height^2 + width^2); else in regions.
        smooth: False weights all positives the same.
        decay: lambda of the exponential.

    Returns:
        [N,N] float32, N = height * width, 1 on the diagonal; rows are not normalised.
    """
    places = np.indices((height, width)).reshape(2, -1).T.astype(np.float64)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    if relative:
        distance = distance / np.hypot(height, width)
    weights = np.exp(-decay * distance) if smooth else np.ones_like(distance)
    return np.where(distance <= threshold, weights, 0.0).astype(np.float32)


def local_intra_sample(
    first: Array,
    second: Array,
    *,
    positives: Array | None = None,
    mask: Array | None = None,
    weights: Array | None = None,
    temperature: Array | float = 0.3,
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Each element of a sample must find its positives among the elements of the same sample.

    L = 1/B sum_i sum_k w_k [-sum_l p_kl s_kl + log sum_l exp(s_kl)], s_kl = cos(a_k, b_l) / tau, with the
    rows of p normalised over the real elements and w over each sample.

    Args:
        first: [B,K,D], e.g. regions; second: [B,K,D], what each of them sees in the report.
        positives: [K,K] (or [B,K,K]) weights >= 0, e.g. `spatial_positives`; None = only the element itself
            (sentences).
        mask: [B,K], 1 for real elements; None = all are.
        weights: [B,K] >= 0, importance of each element (detached attention in LoVT); None = all the same.
        temperature: tau.
        example_mask: [B], 1 for real rows.

    Returns:
        losses with the elements of `first`, and with those of `second`, as anchors; float32 scalars. The
        paper adds both, for regions and for sentences, with the weight 0.375 each.
    """
    a, b = normalise(first), normalise(second)
    rows, count = a.shape[:2]
    real = jnp.ones((rows, count)) if mask is None else (jnp.asarray(mask) > 0).astype(jnp.float32)
    importance = real if weights is None else real * jax.lax.stop_gradient(weights)
    importance = _shares(importance) * row_weights(example_mask, rows)[:, None]
    share = jnp.eye(count) if positives is None else jnp.asarray(positives, jnp.float32)
    share = _shares(share * real[:, None, :])
    scores = jnp.einsum("bkd,bld->bkl", a, b, precision="highest") / temperature

    def direction(scores: jax.Array) -> jax.Array:
        everything = jax.nn.logsumexp(jnp.where(real[:, None, :] > 0, scores, OFF), axis=2)
        element = everything - jnp.sum(share * scores, axis=2)
        return jnp.sum(jnp.where(importance > 0, importance * element, 0.0))

    return direction(scores), direction(scores.swapaxes(1, 2))


def _shares(x: jax.Array) -> jax.Array:
    """Divides the last axis by its sum; zeros stay zeros."""
    return x / jnp.maximum(x.sum(axis=-1, keepdims=True), 1e-12)
