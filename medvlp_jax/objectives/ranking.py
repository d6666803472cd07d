"""Ranking of pairs by severity, and severity from either side (Chauhan et al., arXiv 2008.09884)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import ranking as loss_lib
from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.models.layers import Dense
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.types import Array, Batch, Metrics


class Ranking(Objective):
    """L = ranking of `image_embed` and `text_embed` + cross entropy of the severity from image and from text.

    The severity is the number of `columns` that are present: one column is there or not, three ("at least
    mild", "at least moderate", "severe") are 0 to 3. It is unknown where one of them is unknown or uncertain.

    Fields:
        columns: of the labels.
        margin: smallest margin between two studies.
        severity_weight: of the two cross entropies; 0 = ranking alone.
        variant: "paper" or "released", see `losses.ranking.ranking`.
    """

    columns: tuple[int, ...] = (0,)
    margin: float = 0.5
    severity_weight: float = 1.0
    variant: str = "paper"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: wrong_text, wrong_image, known (share of the rows), and
        image_severity, text_severity where they are used.

        Raises:
            UserError: the data set lacks one of the columns.
        """
        del train
        (clean,) = passes
        batch, outputs = clean.batch, clean.outputs
        require_choice(self.variant, ("paper", "released"), "ranking variant")
        severity, known = self._severity(batch, "label")
        mask = batch.get("example_mask")
        texts, images = loss_lib.ranking(
            scaled_products(outputs["image_embed"], outputs["text_embed"], 1.0),
            loss_lib.severity_margins(severity, known, batch["study_id"], margin=self.margin),
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=mask,
        )
        real = jnp.ones(known.shape) if mask is None else jnp.asarray(mask)
        share = jnp.sum(known * real) / jnp.maximum(real.sum(), 1.0)
        metrics: Metrics = {"wrong_text": texts, "wrong_image": images, "known": share}
        loss = texts + images
        if self.severity_weight:
            for side, key in (("image", "label"), ("text", "text_label")):
                wanted, given = self._severity(batch, key)
                head = Dense(len(self.columns) + 1, dtype=self.dtype, name=f"{side}_severity")
                value = _cross_entropy(head(outputs[f"{side}_pooled"]), wanted, given * real)
                metrics[f"{side}_severity"] = value
                loss = loss + self.severity_weight * value
        return loss, metrics

    def _severity(self, batch: Batch, key: str) -> tuple[jax.Array, jax.Array]:
        """Severity [B] int32 of `label` or `text_label`, and where it is known [B] float32."""
        label, count = batch[key], batch[key].shape[-1]
        if not self.columns or not all(0 <= column < count for column in self.columns):
            raise UserError(
                f"objective ranking: the data set has {count} labels, but objectives.ranking.columns is "
                f"{self.columns}; name columns from 0 to {count - 1}, or choose a labelled dataset"
            )
        places = jnp.array(self.columns)
        values, there = (
            jnp.take(label, places, axis=1),
            jnp.take(batch[f"{key}_mask"], places, axis=1),
        )
        known = jnp.all((values >= 0) & (there > 0), axis=1)
        return jnp.sum(values > 0, axis=1).astype(jnp.int32), known.astype(jnp.float32)


def _cross_entropy(logits: Array, wanted: Array, weights: Array) -> jax.Array:
    """Mean over the rows with weight 1 of logits [B,C] against classes [B]; 0 without any."""
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probs, wanted[:, None], axis=-1)[:, 0]
    return -jnp.sum(weights * picked) / jnp.maximum(jnp.sum(weights), 1.0)
