"""Existence and position of queried entities (MedKLIP, arXiv 2301.02228, section 3.3; KAD, 2302.14042)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import Array


def _masked_mean(values: Array, weights: Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def existence(
    logits: Array,
    label: Array,
    label_mask: Array | None = None,
    *,
    uncertain: Literal["ignore", "zeros"] = "ignore",
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy of "absent" and "present" over all queries whose answer is known.

    Args:
        logits: [B,Q,2], absent first.
        label: [B,Q], 1 present, 0 absent, -1 uncertain.
        label_mask: [B,Q], 1 where the label is known; None = everywhere.
        uncertain: "ignore" leaves uncertain ones out (MedKLIP), "zeros" takes them for absent (KAD's launch).
        example_mask: [B], 1 for real rows.

    Returns:
        loss and accuracy, float32 scalars; both 0 when nothing is known.
    """
    logits, label = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.float32)
    known = jnp.ones(label.shape, bool) if label_mask is None else jnp.asarray(label_mask) > 0
    if uncertain == "ignore":
        known &= label >= 0
    if example_mask is not None:
        known &= jnp.asarray(example_mask)[:, None] > 0
    weights, wanted = known.astype(jnp.float32), label > 0
    picked = jnp.where(wanted, logits[..., 1], logits[..., 0])
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    right = ((logits[..., 1] > logits[..., 0]) == wanted).astype(jnp.float32)
    return _masked_mean(losses, weights), _masked_mean(right, weights)


def sample_positions(
    rng: jax.Array, positions: Array, *, negatives: int = 7
) -> tuple[jax.Array, jax.Array]:
    """Draws for each entity one of its positions and some that are not its own.

    The released code draws the negatives from the positions of all entities together, with repetition, so
    that one can be the positive itself; here they are distinct and never a position of the entity.

    Args:
        rng: random key.
        positions: [B,P,Q], 1 where the entity is at the position.
        negatives: how many.

    Returns:
        candidates [B,Q,1+negatives] int32, the positive first; usable [B,Q] bool, False for entities without
        a position or with too few others.

    Raises:
        UserError: there are not that many positions.
    """
    here = jnp.swapaxes(jnp.asarray(positions) == 1, 1, 2)
    count = here.shape[-1]
    if negatives >= count:
        raise UserError(
            f"{negatives} negatives need more than {count} positions; lower `negatives`"
        )
    noise = jax.random.uniform(rng, here.shape)
    positive = jnp.argmax(jnp.where(here, noise, -1.0), axis=-1)
    others = jnp.argsort(jnp.where(here, 2.0, noise), axis=-1)[..., :negatives]
    candidates = jnp.concatenate([positive[..., None], others], axis=-1).astype(jnp.int32)
    enough = (~here).sum(axis=-1) >= negatives
    return candidates, here.any(axis=-1) & enough


def position_contrast(
    states: Array,
    table: Array,
    candidates: Array,
    present: Array,
    *,
    logit_scale: Array | float = 1.0,
    example_mask: Array | None = None,
) -> jax.Array:
    """Mean of -log softmax(<state, position>) of the positive among the candidates, over what is present.

    Args:
        states: [B,Q,E] of the queries, projected to the width of the positions; not normalised.
        table: [P,E] embeddings of the positions.
        candidates: [B,Q,1+N] int, positive first, see `sample_positions`.
        present: [B,Q], nonzero for the entities that count.
        logit_scale: 1 in the released code, which has no temperature.
        example_mask: [B], 1 for real rows.

    Returns:
        float32 scalar; 0 when nothing is present.
    """
    weights = (jnp.asarray(present) > 0).astype(jnp.float32)
    if example_mask is not None:
        weights = weights * (jnp.asarray(example_mask)[:, None] > 0)
    chosen = jnp.take(jnp.asarray(table, jnp.float32), jnp.asarray(candidates), axis=0)
    states = jnp.asarray(states, jnp.float32)
    logits = jnp.einsum("bqe,bqne->bqn", states, chosen, precision="highest") * logit_scale
    losses = jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]
    return _masked_mean(losses, weights)
