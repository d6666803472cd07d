"""MIL-NCE over the two texts of a row (Miech et al., arXiv 1912.06430; SurgVLP, 2307.15220)."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses import mil_nce as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, SecondText
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class MilNce(Objective):
    """Either of the two texts may fit the image; needs `data.text.second`.

    Fields:
        temperature, learnable, max_scale: see `InfoNce`.
        both_directions: whether images of other rows are negatives too.
        variant: "paper" or "released", see `losses.mil_nce.mil_nce`.
    """

    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    both_directions: bool = True
    variant: str = "paper"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch and the one with the second texts."""
        return (Clean(), SecondText())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale."""
        del train
        first, second = passes
        require_choice(self.variant, ("paper", "released"), "mil_nce variant")
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        texts = jnp.stack([p.outputs["text_embed"] for p in (first, second)], axis=1)
        loss = loss_lib.mil_nce(
            first.outputs["image_embed"],
            texts,
            scale,
            both_directions=self.both_directions,
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=first.batch.get("example_mask"),
        )
        return loss, {"logit_scale": scale}
