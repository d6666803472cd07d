"""Contrast of images with the entities of their reports (KAD, arXiv 2302.14042, stage 2)."""

from __future__ import annotations

import math
from typing import Literal

import jax

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def image_entity_contrast(
    image_state: Array,
    entity_state: Array,
    *,
    logit_scale: Array | float | None = None,
    temperature: float = 0.07,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """Mean of both directions of InfoNCE between images and their lists of entities.

    Args:
        image_state, entity_state: [B,D], as the towers give them, not normalised.
        logit_scale: inverse temperature of the cosines; None = 1 / temperature.
        temperature: of the variant "released", whose logits are ln(1 / temperature) times the plain products:
            its code makes a new scale at each call, takes the logarithm for the scale, never trains it, and
            does not normalise the states.
        variant: "paper" takes cosines.
        example_mask: [B], 1 for real rows; padded rows are neither anchors nor negatives.

    Returns:
        float32 scalar.
    """
    if variant == "released":
        scale = math.log(1 / temperature)
        return info_nce(image_state, entity_state, scale, example_mask=example_mask)
    scale = 1 / temperature if logit_scale is None else logit_scale
    return info_nce(
        normalise(image_state), normalise(entity_state), scale, example_mask=example_mask
    )
