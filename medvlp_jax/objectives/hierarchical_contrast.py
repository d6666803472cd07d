"""Contrast of the levels of the image with the sections of the report (IMITATE, arXiv 2310.07355)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import info_nce, scaled_products
from medvlp_jax.losses.soft_contrast import clinical_prior, target_contrast
from medvlp_jax.models import heads, layers
from medvlp_jax.models.multi_level import MultiLevelPool
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Corruption, NthText
from medvlp_jax.objectives.inputs import require
from medvlp_jax.objectives.report_states import report_states
from medvlp_jax.types import Array, Metrics


class HierarchicalContrast(Objective):
    """Multi-level image features against the findings, the last level against the impression, both levels.

    Reads the sections as the two texts of each row: `data.text.sample="section"` and
    `data.text.per_image=2`. A row that lacks a section counts in the third part only. The image tower is a
    ResNet; the text tower, which IMITATE keeps frozen, gets no gradient, only the head on top of it.

    Fields:
        features: width of all embeddings.
        pool_size, shares, pool_heads: of the multi-level feature, see `models.multi_level.MultiLevelPool`.
        temperature: of image against text, and factor of the soft targets; visual_temperature: of the two
            levels.
        strength: lambda of the soft targets, see `losses.soft_contrast.clinical_prior`.
        pooling: state of a text, see `report_states`.
        findings_weight, impression_weight, visual_weight: of the three parts, each the mean of its two
            directions.
    """

    features: int = 512
    pool_size: int = 16
    shares: tuple[float, ...] = (0.25, 0.15, 0.10, 0.10)
    pool_heads: int = 4
    temperature: float = 0.07
    visual_temperature: float = 0.2
    strength: float = 0.2
    pooling: str = "token"
    findings_weight: float = 1.0
    impression_weight: float = 1.0
    visual_weight: float = 1.0

    def corruptions(self) -> tuple[Corruption, ...]:
        """The findings and the impression, each with the same image."""
        return (NthText(0), NthText(1))

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: findings, impression, visual."""
        findings, impression = passes
        outputs, name = findings.outputs, "hierarchical_contrast"
        require(
            outputs, ("image_hidden", "image_pooled"), name, "set model.image_encoder.name='resnet'"
        )
        pool = MultiLevelPool(self.pool_size, self.shares, self.pool_heads, name="multi_level")
        levels = pool(outputs["image_hidden"], train=train)
        middle = self._head("middle_head", levels, levels.shape[-1], train)
        high = outputs["image_pooled"]
        high = self._head("high_head", high, high.shape[-1], train)
        text_head = heads.BatchNormProjection(self.features, 1024, name="text_head")
        rows = findings.batch.get("example_mask")
        complete = jnp.asarray(findings.batch["text_present"])[:, 1]
        complete = complete if rows is None else complete * rows

        def against(image: jax.Array, text: Pass) -> jax.Array:
            states = report_states(text.outputs, text.batch, self.pooling, name)
            embed = layers.l2_normalize(text_head(states, train=train))
            return target_contrast(
                scaled_products(image, embed, 1 / self.temperature),
                clinical_prior(states, strength=self.strength, smoothing=self.temperature),
                normalise="none",
                example_mask=complete,
            )

        parts = {
            "findings": against(middle, findings),
            "impression": against(high, impression),
            "visual": info_nce(middle, high, 1 / self.visual_temperature, example_mask=rows),
        }
        loss = sum(getattr(self, f"{part}_weight") * value for part, value in parts.items())
        return jnp.asarray(loss), parts

    def _head(self, name: str, x: Array, hidden: int, train: bool) -> jax.Array:
        head = heads.BatchNormProjection(self.features, hidden, name=name)
        return jnp.asarray(layers.l2_normalize(head(x, train=train)))
