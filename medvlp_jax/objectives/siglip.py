"""Pairwise sigmoid contrast (SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import info_nce as masks
from medvlp_jax.losses import siglip as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class Siglip(Objective):
    """Sigmoid loss with learnable scale and bias (section 3.2: t starts at 10, b at -10).

    Fields:
        initial_scale, initial_bias: starting values.
        duplicates: "ignore" or "mask", see `InfoNce`.
    """

    initial_scale: float = 10.0
    initial_bias: float = -10.0
    duplicates: str = "ignore"

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, logit_bias."""
        del train
        (clean,) = passes
        if self.duplicates not in ("ignore", "mask"):
            raise UserError(f"siglip duplicates={self.duplicates!r}: choose ignore or mask")
        log_scale = self.param(
            "log_logit_scale", nn.initializers.constant(math.log(self.initial_scale)), ()
        )
        bias = self.param("logit_bias", nn.initializers.constant(self.initial_bias), ())
        drop = None
        if self.duplicates == "mask":
            drop = masks.duplicate_negatives(clean.batch["text_id"])
        loss = loss_lib.siglip(
            clean.outputs["image_embed"],
            clean.outputs["text_embed"],
            jnp.exp(log_scale),
            bias,
            example_mask=clean.batch.get("example_mask"),
            drop_negatives=drop,
        )
        return loss, {"logit_scale": jnp.exp(log_scale), "logit_bias": bias}
