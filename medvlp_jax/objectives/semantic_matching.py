"""Semantic matching of unpaired images and texts by their labels (MedCLIP, arXiv 2210.10163)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.soft_contrast import label_similarity, soft_contrast
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class SemanticMatching(Objective):
    """Soft-target contrast; images and texts need not be pairs, only labelled.

    Fields:
        temperature: initial temperature of the learnable scale.
        max_scale: upper clamp of the scale; the lower one is 1 (the code clamps its log to [0, 4.6052]).
        variant: "paper" takes the cosine of the label vectors as similarity, "released" their plain
            product, whose softmax is close to one-hot for images with many findings.
    """

    temperature: float = 0.07
    max_scale: float = 100.0
    variant: str = "paper"

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; reads label, text_label and their masks; metrics: logit_scale."""
        del train
        (clean,) = passes
        if self.variant not in ("paper", "released"):
            raise UserError(f"semantic_matching variant={self.variant!r}: choose paper or released")
        if clean.batch["label"].shape[-1] == 0:
            raise UserError(
                "objective semantic_matching compares labels, but the dataset has none: choose a "
                "labelled dataset or another objective (e.g. info_nce)"
            )
        scale = logit_scale(self, self.temperature, min_scale=1.0, max_scale=self.max_scale)
        batch = clean.batch
        targets = label_similarity(
            batch["label"] * batch["label_mask"],
            batch["text_label"] * batch["text_label_mask"],
            cosine=self.variant == "paper",
        )
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        logits = scale * jnp.matmul(image, text.T, precision="highest")
        loss = soft_contrast(logits, targets, example_mask=batch.get("example_mask"))
        return loss, {"logit_scale": scale}
