"""The inverse temperature of a contrast, as a parameter or fixed."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def logit_scale(
    objective: nn.Module,
    temperature: float,
    *,
    learnable: bool = True,
    min_scale: float = 0.0,
    max_scale: float = 100.0,
) -> jax.Array:
    """Scale of an objective's logits; to be called inside its `__call__`.

    Args:
        objective: owner of the parameter `log_logit_scale`.
        temperature: 1 / scale at the start, or for good.
        learnable: whether the parameter exists.
        min_scale, max_scale: range that the scale never leaves.

    Returns:
        float32 scalar.
    """
    start = -math.log(temperature)
    log_scale = jnp.asarray(start, jnp.float32)
    if learnable:
        log_scale = objective.param("log_logit_scale", nn.initializers.constant(start), ())
    low = math.log(min_scale) if min_scale > 0 else -math.inf
    return jnp.exp(jnp.clip(log_scale, low, math.log(max_scale)))
