"""Contrast of masked images, weighted by what they show (MaCo, arXiv 2309.05904)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.maco import correlation_weighted_contrast
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Corruption, MaskImage
from medvlp_jax.types import Array, Metrics


class Maco(Objective):
    """The image tower sees part of the patches; a linear function of which ones weighs the pair.

    Beside it belongs `mim` with the same `ratio` and `patch_size`: both then share one forward pass.

    Fields:
        patch_size: of the image encoder; ratio: share of the patches that is removed.
        temperature: at the start; the scale itself is the parameter, as in the released code, not its log.
    """

    patch_size: int = 16
    ratio: float = 0.5
    temperature: float = 0.03

    def corruptions(self) -> tuple[Corruption, ...]:
        """The batch with masked images."""
        return (MaskImage(self.ratio, self.patch_size),)

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, mean importance of a pair."""
        del train
        (masked,) = passes
        scale = self.param("logit_scale", nn.initializers.constant(1 / self.temperature), ())
        visible = 1.0 - masked.batch["image_mask"]
        # Kernel and bias start at 0, as released: every pair then weighs softplus(0).
        zeros = nn.initializers.zeros_init()
        importance = nn.Dense(1, kernel_init=zeros, name="importance")(visible)[:, 0]
        loss = correlation_weighted_contrast(
            masked.outputs["image_embed"],
            masked.outputs["text_embed"],
            importance,
            scale,
            example_mask=masked.batch.get("example_mask"),
        )
        return loss, {"logit_scale": scale, "importance": jnp.mean(nn.softplus(importance))}
