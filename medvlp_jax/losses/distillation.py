"""Distillation of similarities: a student sees a batch as its teacher does (SEED, arXiv 2101.04731)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import mask_columns, row_weights
from medvlp_jax.losses.soft_contrast import soft_target_cross_entropy
from medvlp_jax.types import Array


def similarity_distillation(
    student_logits: Array, teacher_logits: Array, *, example_mask: Array | None = None
) -> jax.Array:
    """L = 1/2 [mean_i KL(softmax_j t_ij || softmax_j s_ij) + mean_j KL(softmax_i t_ij || softmax_i s_ij)].

    The divergence of Hinton et al. (arXiv 1503.02531) over the batch, both ways, so that matrices of images
    and texts have no preferred side; 0 when both agree.

    Args:
        student_logits, teacher_logits: [B,B] similarities, each over its own temperature; the teacher's get
            no gradient.
        example_mask: [B], 1 for real rows; padded rows are no anchors and no candidates.

    Returns:
        float32 scalar.
    """
    student = jnp.asarray(student_logits, jnp.float32)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32))
    weights = row_weights(example_mask, student.shape[0])
    total = jnp.zeros([], jnp.float32)
    for s, t in ((student, teacher), (student.T, teacher.T)):
        t = mask_columns(t, example_mask)
        targets = jax.nn.softmax(t, axis=1)
        cross = soft_target_cross_entropy(mask_columns(s, example_mask), targets, weights)
        total += cross - soft_target_cross_entropy(t, targets, weights)
    return total / 2
