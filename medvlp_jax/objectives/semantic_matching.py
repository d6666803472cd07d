"""Semantic matching of unpaired images and texts by their labels (MedCLIP, arXiv 2210.10163)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.soft_contrast import label_similarity, soft_contrast
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class SemanticMatching(Objective):
    """Soft-target contrast; images and texts need not be pairs, only labelled.

    Fields:
        temperature: initial temperature of the learnable scale.
        max_log_scale: upper clamp of the log scale (the code clamps to [0, 4.6052]).
        variant: "paper" takes the cosine of the label vectors as similarity, "released" their plain
            product, whose softmax is close to one-hot for images with many findings.
    """

    temperature: float = 0.07
    max_log_scale: float = 4.6052
    variant: str = "paper"

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; reads label, text_label and their masks; metrics: logit_scale."""
        del train
        (clean,) = passes
        log_scale = self.param(
            "log_logit_scale", nn.initializers.constant(-math.log(self.temperature)), ()
        )
        scale = jnp.exp(jnp.clip(log_scale, 0.0, self.max_log_scale))
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
