"""Image-text matching on fused features (ViLT, arXiv 2102.03334; M3AE, 2209.07098)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.matching import matching
from medvlp_jax.models.heads import ItmHead
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Corruption, MismatchPairs
from medvlp_jax.types import Array, Metrics


class Itm(Objective):
    """Binary classification of `fused_pooled`: does the image belong to the text?

    Fields:
        share: share of the rows that gets another row's image.
    """

    share: float = 0.5
    dtype: Any = jnp.float32

    def corruptions(self) -> tuple[Corruption, ...]:
        """Exchanged images, text untouched."""
        return (MismatchPairs(share=self.share),)

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: accuracy."""
        del train
        (mixed,) = passes
        if "fused_pooled" not in mixed.outputs:
            raise UserError(
                "objective itm needs the output fused_pooled: set model.fusion (e.g. fusion.CoAttention)"
            )
        logits = ItmHead(dtype=self.dtype, name="head")(mixed.outputs["fused_pooled"])
        loss, accuracy = matching(
            logits, mixed.batch["itm_label"], example_mask=mixed.batch.get("example_mask")
        )
        return loss, {"accuracy": accuracy}
