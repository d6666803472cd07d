"""Contrast of the texts of a knowledge base (KAD, arXiv 2302.14042, stage 1: Med-KEBERT)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.losses.soft_contrast import same_group, target_contrast
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, SecondText
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class KnowledgeContrast(Objective):
    """A concept's name (first text) and its definition or relation (second text) belong together.

    Needs `data.text.second`. Rows of the same concept are positives of each other.

    Fields:
        group: batch key that names the concept (UMLS CUI) of a row.
        temperature, learnable, max_scale: see `InfoNce`.
        variant: "paper" divides the targets of a row by their sum, "released" by their L2 norm.
    """

    group: str = "study_id"
    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    variant: str = "paper"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch and the one with the second texts."""
        return (Clean(), SecondText())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale."""
        del train
        first, second = passes
        require_choice(self.variant, ("paper", "released"), "knowledge_contrast variant")
        require(first.batch, (self.group,), "knowledge_contrast", "set its `group` to a batch key")
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        logits = scaled_products(first.outputs["text_embed"], second.outputs["text_embed"], scale)
        normalise: Any = "sum" if self.variant == "paper" else "l2"
        loss = target_contrast(
            logits,
            same_group(first.batch[self.group]),
            normalise=normalise,
            example_mask=first.batch.get("example_mask"),
        )
        return loss, {"logit_scale": scale}
