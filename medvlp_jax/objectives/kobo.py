"""Contrast with a knowledge graph behind it (KoBo, arXiv 2307.07246)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import knowledge_negatives as loss_lib
from medvlp_jax.losses.info_nce import info_nce, scaled_products
from medvlp_jax.models.heads import MLPProjection
from medvlp_jax.models.layers import l2_normalize
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.query_table import query_table
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class Kobo(Objective):
    """L = contrast + knowledge semantic enhancement + knowledge semantic guidance.

    The knowledge of a sample is the mean graph embedding of the labels that its text says are present; the
    embeddings are made beforehand (a graph network over UMLS, say) and stay fixed.

    Fields:
        entities: file of graph embeddings [K, E] (.npy), one row per label; must be given.
        contrast_weight, enhancement_weight, guidance_weight: of the three terms.
        temperature, learnable, max_scale: see `InfoNce`.
    """

    entities: str = ""
    contrast_weight: float = 1.0
    enhancement_weight: float = 1.0
    guidance_weight: float = 1.0
    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, mean noise of a negative, and the three terms.

        Raises:
            UserError: no entity file, or no labels.
        """
        (clean,) = passes
        batch, count = clean.batch, clean.batch["text_label"].shape[-1]
        if not self.entities or not count:
            raise UserError(
                "objective kobo needs a labelled dataset and graph embeddings of its labels: set "
                "config.objectives.kobo.entities to a .npy file [labels, width]"
            )
        table = query_table(self, "entity_embeddings", self.entities, count)
        knowledge = loss_lib.sample_knowledge(batch["text_label"] * batch["text_label_mask"], table)
        noise = loss_lib.noise_of_negatives(knowledge)
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        mask = batch.get("example_mask")
        head = MLPProjection(image.shape[-1], name="knowledge_projection")
        terms = {
            "contrast": info_nce(image, text, scale, example_mask=mask),
            "enhancement": loss_lib.enhanced_contrast(
                scaled_products(image, text, scale), noise, example_mask=mask
            ),
            "guidance": loss_lib.knowledge_guidance(
                image,
                text,
                l2_normalize(head(knowledge, train=train)),
                scale,
                present=jnp.any(knowledge != 0, axis=-1),
                example_mask=mask,
            ),
        }
        loss = (
            self.contrast_weight * terms["contrast"]
            + self.enhancement_weight * terms["enhancement"]
            + self.guidance_weight * terms["guidance"]
        )
        return loss, {"logit_scale": scale, "noise": noise.mean(), **terms}
