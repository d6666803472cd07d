"""One state per report, from a text tower that no longer learns: what objectives compare reports by."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.models.pooling import masked_max, masked_mean
from medvlp_jax.objectives.corruption import Momentum
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.types import Array, Batch, Outputs

FROZEN_TEXT = Momentum(decay=1.0, sides=("text",))
"""The text tower as it was at the first step, e.g. with its pretrained weights."""

POOLINGS = ("pooled", "token", "mean", "max")


def report_states(outputs: Outputs, batch: Batch, pooling: str, objective: str) -> jax.Array:
    """State of each report [B,D], float32, without gradient.

    Args:
        outputs: of a text tower.
        batch: with `attention_mask`.
        pooling: "pooled" = the tower's own, "token" = the first token, "mean" or "max" over the tokens.
        objective: its name, for the error.

    Raises:
        UserError: unknown pooling.
    """
    require_choice(pooling, POOLINGS, f"{objective} pooling")
    states = outputs["text_pooled"]
    if pooling == "token":
        states = outputs["text_states"][:, 0]
    elif pooling != "pooled":
        pool = masked_mean if pooling == "mean" else masked_max
        states = pool(outputs["text_states"], batch["attention_mask"])
    return jax.lax.stop_gradient(jnp.asarray(states, jnp.float32))


def cosines(states: Array, eps: float = 1e-8) -> jax.Array:
    """Cosines [B,B] of the rows of states [B,D]; 0 for rows of zeros."""
    states = states / jnp.maximum(jnp.linalg.norm(states, axis=-1, keepdims=True), eps)
    return jnp.matmul(states, states.T, precision="highest")
