"""Pairs lead wrong partners by a margin that grows with severity (Chauhan et al., arXiv 2008.09884)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def severity_margins(
    severity: Array, known: Array, group: Array, *, margin: float = 0.5
) -> jax.Array:
    """Margins eta_ij: 0 within a study, else max(margin, |y_i - y_j|), or margin where one is unknown.

    Args:
        severity: [B] y, e.g. 0 to 3; known: [B], nonzero where it is.
        group: [B] int, rows of one study are equal.
        margin: smallest margin between studies.

    Returns:
        [B,B] float32, symmetric, 0 on the diagonal.
    """
    value, there = jnp.asarray(severity, jnp.float32), jnp.asarray(known) > 0
    apart = jnp.abs(value[:, None] - value[None, :])
    both = there[:, None] & there[None, :]
    margins = jnp.where(both, jnp.maximum(apart, margin), margin)
    return jnp.where(jnp.asarray(group)[:, None] == jnp.asarray(group)[None, :], 0.0, margins)


def ranking(
    scores: Array,
    margins: Array,
    *,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Hinge losses max(0, s_wrong - s_ii + eta) for a wrong text and for a wrong image, means over the rows.

    Args:
        scores: [B,B] similarities s_ij of image i and text j.
        margins: [B,B] eta_ij.
        variant: "paper" averages over all wrong partners in the batch, which is what a random one gives on
            average; "released" takes the next real row, as its code does.
        example_mask: [B], 1 for real rows; the others are neither pairs nor partners.

    Returns:
        the loss of wrong texts and that of wrong images, float32 scalars; 0 for a single row.
    """
    scores = jnp.asarray(scores, jnp.float32)
    rows = scores.shape[0]
    real = jnp.ones(rows, bool) if example_mask is None else jnp.asarray(example_mask) > 0
    others = ~jnp.eye(rows, dtype=bool) & real[None, :]
    if variant == "released":
        others &= jnp.arange(rows)[None, :] == _next(real)[:, None]
    share = others / jnp.maximum(others.sum(axis=1, keepdims=True), 1)
    weights = row_weights(example_mask, rows)
    pair = jnp.diagonal(scores)[:, None]

    def hinge(wrong: jax.Array) -> jax.Array:
        losses = jnp.where(others, jax.nn.relu(wrong - pair + margins), 0.0)
        return jnp.sum(weights * jnp.sum(share * losses, axis=1))

    return hinge(scores), hinge(scores.T)


def _next(real: jax.Array) -> jax.Array:
    """[B] index of the next real row of each row; after the last one comes the first."""
    rows = real.shape[0]
    steps = (jnp.arange(rows)[None, :] - jnp.arange(rows)[:, None] - 1) % rows
    return jnp.argmin(jnp.where(real[None, :], steps, rows), axis=1)
