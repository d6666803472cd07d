"""Image-text matching (ViLT, arXiv 2102.03334; M3AE, arXiv 2209.07098, section 2.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array


def matching(
    logits: Array, labels: Array, *, example_mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of "this image and this text belong together", and the accuracy.

    Args:
        logits: [B,2].
        labels: [B] int, 1 = matches.
        example_mask: [B], 1 for real rows.
    """
    logits = jnp.asarray(logits, jnp.float32)
    weights = row_weights(example_mask, logits.shape[0])
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return -jnp.sum(weights * picked), jnp.sum(weights * right)
