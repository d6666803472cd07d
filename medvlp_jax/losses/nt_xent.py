"""InfoNCE with negatives of both modalities (NT-Xent of SimCLR, arXiv 2002.05709; an option of LoVT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array


def nt_xent(
    first: Array,
    second: Array,
    *,
    temperature: Array | float = 0.1,
    same_modality: bool = True,
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of "a_i belongs to b_i" among all b, and with `same_modality` among all other a too.

    Without `same_modality` the two values are the directions of `info_nce.info_nce`.

    Args:
        first, second: [B,D], L2-normalised.
        temperature: tau (0.1 in LoVT).
        same_modality: see above.
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.

    Returns:
        losses with the rows of `first`, and with those of `second`, as anchors; float32 scalars.
    """
    a, b = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
    weights = row_weights(example_mask, a.shape[0])
    own = jnp.eye(a.shape[0], dtype=bool)
    real = jnp.broadcast_to(weights > 0, own.shape)

    def direction(anchors: jax.Array, partners: jax.Array) -> jax.Array:
        across = jnp.matmul(anchors, partners.T, precision="highest") / temperature
        logits = jnp.where(real | own, across, OFF)
        if same_modality:
            within = jnp.matmul(anchors, anchors.T, precision="highest") / temperature
            logits = jnp.concatenate([logits, jnp.where(real & ~own, within, OFF)], axis=1)
        return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(across)))

    return direction(a, b), direction(b, a)
