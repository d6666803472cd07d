"""Losses on correlation matrices: Barlow Twins, VICReg, Med-UniC between languages, M-FLAG's gap."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def identity_gap(matrix: Array, off_weight: float, present: Array | None = None) -> jax.Array:
    """sum_i (1 - M_ii)^2 + off_weight sum_{i != j} M_ij^2.

    Args:
        matrix: M [K,K].
        off_weight: of what is off the diagonal.
        present: [K], 0 = row and column are left out; None = all count.
    """
    own = jnp.eye(matrix.shape[0])
    gap = jnp.where(own > 0, (1 - matrix) ** 2, off_weight * matrix**2)
    if present is not None:
        keep = jnp.asarray(present) > 0
        gap = jnp.where(keep[:, None] & keep[None, :], gap, 0.0)
    return jnp.sum(gap)


def standardise(x: Array, example_mask: Array | None = None, eps: float = 1e-5) -> jax.Array:
    """Each feature of x [B,D] to mean 0 and variance 1 over the real rows; padded rows become 0."""
    x = jnp.asarray(x, jnp.float32)
    weights = row_weights(example_mask, x.shape[0])[:, None]
    centred = jnp.where(weights > 0, x - jnp.sum(weights * x, axis=0), 0.0)
    variance = jnp.sum(weights * centred**2, axis=0)
    return centred * jax.lax.rsqrt(variance + eps)


def barlow_twins(
    first: Array,
    second: Array,
    *,
    off_weight: float = 0.0051,
    example_mask: Array | None = None,
) -> jax.Array:
    """`identity_gap` of the cross-correlation of the features of two views (arXiv 2103.03230, eq. 1 and 2).

    Args:
        first, second: [B,D].
        off_weight: lambda.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    correlation = _product(
        standardise(first, example_mask), standardise(second, example_mask), example_mask
    )
    return _unless_empty(identity_gap(correlation, off_weight), example_mask)


def vicreg(
    first: Array,
    second: Array,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    target: float = 1.0,
    eps: float = 1e-4,
    example_mask: Array | None = None,
) -> jax.Array:
    """lambda s + mu (v(x) + v(y)) + nu (c(x) + c(y)) (VICReg, arXiv 2105.04906, eq. 1-6).

    s: mean squared distance of the views; v: mean of max(0, target - sqrt(var + eps)) over the features; c:
    sum of the squared covariances of different features / D. Variances divide by n - 1.

    Args:
        first, second: [B,D].
        invariance_weight, variance_weight, covariance_weight: lambda, mu, nu.
        target: gamma; eps: of the standard deviation.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    views = [jnp.asarray(x, jnp.float32) for x in (first, second)]
    weights = row_weights(example_mask, views[0].shape[0])[:, None]
    count = jnp.sum(weights > 0)
    # As in the paper the sum of squares is divided by D only in c, and by n in s.
    loss = invariance_weight * jnp.sum(weights * (views[0] - views[1]) ** 2)
    for view in views:
        centred = jnp.where(weights > 0, view - jnp.sum(weights * view, axis=0), 0.0)
        covariance = jnp.matmul(centred.T, centred, precision="highest") / jnp.maximum(count - 1, 1)
        deviation = jnp.sqrt(jnp.diagonal(covariance) + eps)
        own = jnp.eye(covariance.shape[0], dtype=bool)
        loss += variance_weight * jnp.mean(jax.nn.relu(target - deviation))
        loss += covariance_weight * jnp.sum(jnp.where(own, 0.0, covariance**2)) / len(own)
    return _unless_empty(loss, example_mask)


def cross_lingual_features(
    first: Array,
    second: Array,
    *,
    off_weight: float = 0.0051,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Feature-level term of Med-UniC (arXiv 2305.19894): two views of a text agree in each feature alone.

    Args:
        first, second: [B,D] of the two views.
        off_weight: lambda.
        variant: "paper" standardises the features and divides `identity_gap` by 2 D; "released" takes the
            plain product / B, as the last layer of its head is a batch norm, and divides by 4 D.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    width = first.shape[-1]
    if variant == "paper":
        gap = barlow_twins(first, second, off_weight=off_weight, example_mask=example_mask)
        return gap / (2 * width)
    gap = identity_gap(_product(first, second, example_mask), off_weight)
    return _unless_empty(gap / (4 * width), example_mask)


def cross_lingual_instances(
    first: Array,
    second: Array,
    *,
    off_weight: float = 0.0051,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Instance-level term of Med-UniC: the two views of a text agree, and texts differ from each other.

    Args:
        first, second: [B,D] of the two views.
        off_weight: lambda.
        variant: "paper" takes the cosines of the rows and divides `identity_gap` by 2 B; "released" takes
            their products / B and divides by 200 B (its launch leaves this term out).
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    x, y = (jnp.asarray(z, jnp.float32) for z in (first, second))
    real = row_weights(example_mask, x.shape[0]) > 0
    count = jnp.maximum(jnp.sum(real), 1)
    if variant == "paper":
        products = jnp.matmul(normalise(x), normalise(y).T, precision="highest")
        return identity_gap(products, off_weight, real) / (2 * count)
    products = jnp.matmul(x, y.T, precision="highest") / count
    return identity_gap(products, off_weight, real) / (200 * count)


def orthogonality(
    features: Array,
    *,
    off_weight: float = 0.0051,
    variant: Variant = "paper",
    denominator: float | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """`identity_gap` of the autocorrelation X^T X / B of image features (M-FLAG, arXiv 2307.08347).

    Args:
        features: [B,D], neither centred nor normalised.
        off_weight: lambda.
        variant: "released" halves the value.
        denominator: instead of the number of real rows (the released code divides by the configured batch).
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    correlation = _product(features, features, example_mask)
    if denominator is not None:
        rows = jnp.sum(row_weights(example_mask, features.shape[0]) > 0)
        correlation = correlation * rows / denominator
    gap = identity_gap(correlation, off_weight)
    return _unless_empty(gap / 2 if variant == "released" else gap, example_mask)


def cosine_alignment(
    first: Array,
    second: Array,
    *,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Alignment without negatives of M-FLAG: mean of 2 - 2 cos(v_i, t_i).

    Args:
        first, second: [B,D], normalised here.
        variant: "released" counts both directions, 4 - 4 cos.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    value = 2 - 2 * jnp.sum(normalise(first) * normalise(second), axis=-1)
    mean = jnp.sum(row_weights(example_mask, value.shape[0]) * value)
    return 2 * mean if variant == "released" else mean


def _product(first: Array, second: Array, example_mask: Array | None) -> jax.Array:
    """X^T Y / n over the real rows, [D,D]."""
    x, y = (jnp.asarray(z, jnp.float32) for z in (first, second))
    weights = row_weights(example_mask, x.shape[0])[:, None]
    return jnp.matmul(jnp.where(weights > 0, weights * x, 0.0).T, y, precision="highest")


def _unless_empty(loss: Array, example_mask: Array | None) -> jax.Array:
    """The loss, or 0 where there is no real row: an empty matrix is not the identity either."""
    if example_mask is None:
        return jnp.asarray(loss)
    return jnp.where(jnp.any(jnp.asarray(example_mask) > 0), loss, 0.0)
