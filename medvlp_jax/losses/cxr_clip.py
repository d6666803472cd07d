"""Study-level contrast of two images and two texts (CXR-CLIP, arXiv 2310.13292)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.types import Array


def multi_view_contrast(
    images: tuple[Array, ...],
    texts: tuple[Array, ...],
    logit_scale: Array | float,
    *,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """Multi-view supervision: mean of InfoNCE over all pairs of an image and a text of the same study.

    Args:
        images, texts: tuples of [B,D], L2-normalised.
        logit_scale, example_mask, drop_negatives: as for `info_nce`.
    """
    losses = [
        info_nce(image, text, logit_scale, example_mask=example_mask, drop_negatives=drop_negatives)
        for image in images
        for text in texts
    ]
    return jnp.mean(jnp.stack(losses))


def cxr_clip(
    images: tuple[Array, Array],
    texts: tuple[Array, Array],
    logit_scale: Array | float,
    *,
    image_weight: float = 1.0,
    text_weight: float = 0.5,
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = L_MVS + lambda_I InfoNCE(I_1, I_2) + lambda_T InfoNCE(T_1, T_2), all with one temperature.

    Args:
        images: two views of each study, each [B,D], L2-normalised; texts: its two texts, likewise.
        logit_scale: inverse temperature.
        image_weight: lambda_I of the image contrast (ICL); text_weight: lambda_T of the text contrast (TCL).
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.
        drop_negatives: [B,B] True for pairs that are no negatives.

    Returns:
        float32 scalar, and its parts `image_text`, `image_image`, `text_text` before they are weighted.
    """
    masks: dict[str, Any] = dict(example_mask=example_mask, drop_negatives=drop_negatives)
    parts = {
        "image_text": multi_view_contrast(images, texts, logit_scale, **masks),
        "image_image": info_nce(*images, logit_scale, **masks),
        "text_text": info_nce(*texts, logit_scale, **masks),
    }
    within = image_weight * parts["image_image"] + text_weight * parts["text_text"]
    return parts["image_text"] + within, parts
