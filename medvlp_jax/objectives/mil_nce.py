"""MIL-NCE over several texts of a row (Miech et al., arXiv 1912.06430; SurgVLP, 2307.15220)."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses import mil_nce as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, NthText, SecondText
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class MilNce(Objective):
    """Any of a row's texts may fit the image.

    Fields:
        texts: n > 0 = the n texts of `data.text.per_image=n`, of which a row may lack some; 0 = the text and
            the second text of `data.text.second`.
        temperature, learnable, max_scale: see `InfoNce`.
        both_directions: whether images of other rows are negatives too.
        variant: "paper" or "released", see `losses.mil_nce.mil_nce`.
    """

    texts: int = 0
    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    both_directions: bool = True
    variant: str = "paper"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The batch with each of the texts in turn."""
        if self.texts:
            return tuple(NthText(i) for i in range(self.texts))
        return (Clean(), SecondText())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale."""
        del train
        first = passes[0]
        require_choice(self.variant, ("paper", "released"), "mil_nce variant")
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        texts = jnp.stack([p.outputs["text_embed"] for p in passes], axis=1)
        present = first.batch.get("text_present")
        loss = loss_lib.mil_nce(
            first.outputs["image_embed"],
            texts,
            scale,
            text_present=None if present is None else present[:, : len(passes)],
            both_directions=self.both_directions,
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=first.batch.get("example_mask"),
        )
        return loss, {"logit_scale": scale}
