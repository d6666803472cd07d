"""Cross-modal prototypes (MGCA, arXiv 2210.06044, eq. 6-8) with Sinkhorn codes (SwAV, 2006.09882)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array


def sinkhorn(
    scores: Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    example_mask: Array | None = None,
) -> jax.Array:
    """Balanced soft assignment of rows to prototypes, over the global batch and without gradient.

    Args:
        scores: [B,K] similarities.
        epsilon: sharpness of the assignment.
        iterations: Sinkhorn-Knopp iterations.
        example_mask: [B], 1 for real rows; padded rows take no mass.

    Returns:
        [B,K] codes; real rows sum to 1, padded rows are 0.
    """
    scaled = jax.lax.stop_gradient(jnp.asarray(scores, jnp.float32)) / epsilon
    rows, count = scaled.shape
    real = jnp.ones((rows,), jnp.float32)
    if example_mask is not None:
        real = jnp.asarray(example_mask, jnp.float32)
    # Any common factor cancels, so the largest exponent may be 0.
    top = jnp.max(jnp.where(real[:, None] > 0, scaled, -jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    plan = jnp.exp(jnp.minimum(scaled - top, 0.0)) * real[:, None]
    plan = plan / jnp.maximum(plan.sum(), 1e-30)
    total = jnp.maximum(real.sum(), 1.0)
    for _ in range(iterations):
        plan = plan / jnp.maximum(plan.sum(axis=0, keepdims=True), 1e-30) / count
        plan = plan / jnp.maximum(plan.sum(axis=1, keepdims=True), 1e-30) / total
    return plan / jnp.maximum(plan.sum(axis=1, keepdims=True), 1e-30) * real[:, None]


def prototype_alignment(
    image_embed: Array,
    text_embed: Array,
    prototypes: Array,
    *,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    example_mask: Array | None = None,
) -> jax.Array:
    """Swapped prediction: L = 1/2 [H(q_image, p_text) + H(q_text, p_image)].

    Args:
        image_embed: [B,D], L2-normalised.
        text_embed: [B,D], L2-normalised.
        prototypes: [K,D], unit rows.
        temperature: tau_3 of the predicted distribution.
        epsilon: of the Sinkhorn codes.
        iterations: of the Sinkhorn codes.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar.
    """
    table = jnp.asarray(prototypes, jnp.float32)
    image, text = (
        jnp.matmul(jnp.asarray(x, jnp.float32), table.T, precision=jax.lax.Precision.HIGHEST)
        for x in (image_embed, text_embed)
    )
    weights = row_weights(example_mask, image.shape[0])

    def predict(code_from: jax.Array, predicted_from: jax.Array) -> jax.Array:
        codes = sinkhorn(
            code_from, epsilon=epsilon, iterations=iterations, example_mask=example_mask
        )
        log_probs = jax.nn.log_softmax(predicted_from / temperature, axis=1)
        return -jnp.sum(weights * jnp.sum(codes * log_probs, axis=1))

    return (predict(image, text) + predict(text, image)) / 2
