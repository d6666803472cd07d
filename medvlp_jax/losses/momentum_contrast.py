"""Contrast with momentum towers, queues and soft pseudo-targets (MoCo, ALBEF and what is built on it).

MoCo: arXiv 1911.05722; ALBEF: 2107.07651; TCL: 2202.10401; MUMC: 2307.05314. Everything here is a pure
function; `objectives.system` keeps the copies of the towers, `objectives.momentum_contrast` the queues.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights, scaled_products
from medvlp_jax.losses.soft_contrast import soft_target_cross_entropy
from medvlp_jax.types import Array


def follow(copy: Any, params: Any, decay: Array | float) -> Any:
    """Momentum update `decay * copy + (1 - decay) * params` of a tree (MoCo, eq. 2), without gradient."""

    def leaf(old: Array, new: Array) -> Array:
        return (decay * old + (1 - decay) * jax.lax.stop_gradient(new)).astype(old.dtype)

    return jax.tree.map(leaf, copy, params)


def enqueue(
    queue: Array, position: Array, rows: Array, *, example_mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Replaces the oldest entries of a queue by the rows of a batch.

    Args:
        queue: [Q,...]; position: int32, place of its oldest entry.
        rows: [B,...] with B <= Q; Q need not be a multiple of B.
        example_mask: [B], 1 for real rows; others are not stored.

    Returns:
        the new queue and position, without gradient.

    Raises:
        UserError: the batch is larger than the queue.
    """
    length, count = queue.shape[0], rows.shape[0]
    if count > length:
        raise UserError(
            f"a queue of {length} cannot take a batch of {count} rows; raise the objective's queue_size"
        )
    real = jnp.ones((count,), jnp.int32)
    if example_mask is not None:
        real = (jnp.asarray(example_mask) > 0).astype(jnp.int32)
    places = (position + jnp.cumsum(real) - 1) % length
    # Out of range places are dropped: that of a padded row.
    places = jnp.where(real > 0, places, length)
    rows = jax.lax.stop_gradient(jnp.asarray(rows)).astype(queue.dtype)
    stored = jnp.asarray(queue).at[places].set(rows, mode="drop")
    return stored, jnp.asarray((position + real.sum()) % length, jnp.int32)


def pseudo_targets(teacher_logits: Array, hard: Array, alpha: Array | float) -> jax.Array:
    """`(1 - alpha) * hard + alpha * softmax(teacher_logits)` (ALBEF, eq. 6), without gradient.

    Args:
        teacher_logits: [B,M] scaled similarities by the momentum towers, masked where there is no candidate.
        hard: [B,M] targets whose rows sum to 1; alpha: share of the teacher.
    """
    soft = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits), axis=1)
    return jnp.asarray((1 - alpha) * hard + alpha * soft)


def queue_contrast(
    anchors: Array,
    teachers: Array,
    keys: Array,
    queue: Array,
    logit_scale: Array | float,
    *,
    alpha: Array | float = 0.4,
    batch_negatives: bool = True,
    queue_mask: Array | None = None,
    example_mask: Array | None = None,
) -> jax.Array:
    """One direction: each anchor must find its key among the keys of the batch and the queue.

    L = mean_i H(y_i, softmax_m(scale <a_i, c_m>)), candidates c = (keys, queue), y = (1 - alpha) one-hot +
    alpha softmax(scale <teacher_i, c_m>). With alpha 0 and no batch negatives it is MoCo's loss (eq. 1).

    Args:
        anchors: [B,D] of the towers; teachers: [B,D] of the momentum towers for the same rows, which make the
            pseudo-targets; keys: [B,D] of the other side's momentum tower. All L2-normalised.
        queue: [Q,D] keys of earlier batches.
        logit_scale: inverse temperature; alpha: share of the pseudo-targets.
        batch_negatives: whether the other rows' keys are negatives (ALBEF) or only the queue's (MoCo).
        queue_mask: [Q], 1 where the queue is filled; None = everywhere.
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor candidates.

    Returns:
        float32 scalar; its gradient reaches the anchors and the scale.
    """
    rows = anchors.shape[0]
    stored = jax.lax.stop_gradient(jnp.concatenate([jnp.asarray(keys), jnp.asarray(queue)]))
    own = jnp.eye(rows, dtype=bool)
    real = jnp.ones((rows,), bool) if example_mask is None else jnp.asarray(example_mask) > 0
    among_keys = jnp.broadcast_to(real[None, :] & batch_negatives, (rows, rows)) | own
    filled = jnp.ones(queue.shape[:1], bool) if queue_mask is None else jnp.asarray(queue_mask) > 0
    keep = jnp.concatenate([among_keys, jnp.broadcast_to(filled, (rows, *filled.shape))], axis=1)
    logits = jnp.where(keep, scaled_products(anchors, stored, logit_scale), OFF)
    teacher = jnp.where(keep, scaled_products(teachers, stored, logit_scale), OFF)
    hard = jnp.eye(rows, stored.shape[0])
    targets = pseudo_targets(teacher, hard, alpha)
    return soft_target_cross_entropy(logits, targets, row_weights(example_mask, rows))


def momentum_contrast(
    embeds: tuple[Array, Array],
    momentum_embeds: tuple[Array, Array],
    queues: tuple[Array, Array],
    logit_scale: Array | float,
    *,
    alpha: Array | float = 0.4,
    unimodal_weight: float = 0.0,
    unimodal_alpha: Array | float = 0.0,
    queue_mask: Array | None = None,
    example_mask: Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Image-text contrast of the ALBEF family: L = 1/2 [L_i2t + L_t2i + w (L_i2i + L_t2t)] (ALBEF, eq. 6).

    w = 0 is ALBEF (and X-REM, M2I2); w = 1/2 with `unimodal_alpha` 0 is MUMC's released code; w = 1 with
    `unimodal_alpha` = alpha is twice TCL's mean over four terms.

    Args:
        embeds: image and text embeddings [B,D] of the towers; momentum_embeds: of the momentum towers;
            queues: image and text keys [Q,D] of earlier batches. All L2-normalised.
        unimodal_weight: w; unimodal_alpha: share of the pseudo-targets in these terms.
        logit_scale, alpha, queue_mask, example_mask: see `queue_contrast`.

    Returns:
        float32 scalar, and the terms before they are weighted.
    """
    (image, text), (image_m, text_m), (images, texts) = embeds, momentum_embeds, queues
    masks: dict[str, Any] = dict(queue_mask=queue_mask, example_mask=example_mask)
    sides = {
        "image_to_text": (image, image_m, text_m, texts),
        "text_to_image": (text, text_m, image_m, images),
    }
    if unimodal_weight:
        sides["image_to_image"] = (image, image_m, image_m, images)
        sides["text_to_text"] = (text, text_m, text_m, texts)
    parts, total = {}, jnp.zeros([], jnp.float32)
    for name, arrays in sides.items():
        across = name in ("image_to_text", "text_to_image")
        share = alpha if across else unimodal_alpha
        parts[name] = queue_contrast(*arrays, logit_scale, alpha=share, **masks)
        total += (1.0 if across else unimodal_weight) * parts[name] / 2
    return total, parts
