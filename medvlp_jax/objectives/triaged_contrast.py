"""Contrast with positive, neutral and negative reports (SAT, Liu et al., IEEE TMI 2023)."""

from __future__ import annotations

from typing import cast

import flax.linen as nn

from medvlp_jax.losses import triage as loss_lib
from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.objectives.report_states import FROZEN_TEXT, cosines, report_states
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class TriagedContrast(Objective):
    """A frozen text tower says which reports of the batch are alike, which are not, and which stay out.

    The frozen tower is the text tower as it was at the first step: start it from pretrained weights.

    Fields:
        positive, negative: thresholds of the cosine, see `losses.triage.triage`.
        pooling: of the frozen tower, see `report_states`; the released launch takes "token".
        temperature, learnable, max_scale: of the logits; SAT keeps 0.1.
        image_to_text_weight: 0.5 in the released launch.
        variant: "paper" or "released", see `losses.triage.triaged_contrast`.
    """

    positive: float = 0.98
    negative: float = 0.97
    pooling: str = "token"
    temperature: float = 0.1
    learnable: bool = False
    max_scale: float = 100.0
    image_to_text_weight: float = 0.5
    variant: str = "paper"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch, by the towers and by the frozen text tower."""
        return (Clean(), FROZEN_TEXT)

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, positives and negatives per row."""
        del train
        clean, frozen = passes
        require_choice(self.variant, ("paper", "released"), "triaged_contrast variant")
        states = report_states(frozen.outputs, frozen.batch, self.pooling, "triaged_contrast")
        positives, negatives = loss_lib.triage(
            cosines(states), positive=self.positive, negative=self.negative
        )
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        logits = scaled_products(clean.outputs["image_embed"], clean.outputs["text_embed"], scale)
        loss = loss_lib.triaged_contrast(
            logits,
            positives,
            negatives,
            image_to_text_weight=self.image_to_text_weight,
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=clean.batch.get("example_mask"),
        )
        rows = positives.shape[0]
        counts = {"positives": positives.sum() / rows, "negatives": negatives.sum() / rows}
        return loss, {"logit_scale": scale, **counts}
