"""The contrast of ConVIRT (arXiv 2010.00747, eq. 2-4) and of REFERS, which takes it over (2111.03452)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import matching_cross_entropies, scaled_products
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def convirt(
    image_embed: Array,
    text_embed: Array,
    *,
    temperature: Array | float = 0.1,
    image_to_text_weight: float = 0.75,
    variant: Variant = "paper",
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """L = lambda CE_i2t + (1 - lambda) CE_t2i at a fixed temperature.

    Args:
        image_embed, text_embed: [B,D], L2-normalised.
        temperature: tau; image_to_text_weight: lambda.
        variant: "released" is the code of REFERS: the same value, but its text-to-image term is read out as
            a Python number (`.item()`), so only the image-to-text term has a gradient. The code of vilmedic
            is the paper's.
        example_mask, drop_negatives: as for `info_nce`.

    Returns:
        float32 scalar.
    """
    logits = scaled_products(image_embed, text_embed, 1 / jnp.asarray(temperature, jnp.float32))
    image_to_text, text_to_image = matching_cross_entropies(
        logits, example_mask=example_mask, drop_negatives=drop_negatives
    )
    if variant == "released":
        text_to_image = jax.lax.stop_gradient(text_to_image)
    return image_to_text_weight * image_to_text + (1 - image_to_text_weight) * text_to_image
