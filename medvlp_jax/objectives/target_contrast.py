"""Contrast in which several texts fit an image, more or less: UniCL, UMCL, FLAIR, IMITATE, Jang et al."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses import soft_contrast as loss_lib
from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.objectives.report_states import FROZEN_TEXT, report_states
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Batch, Metrics


class TargetContrast(Objective):
    """Cross entropy to targets that spread over all rows that belong to an anchor.

    Fields:
        targets: "labels" = positive part of the cosine of the label vectors (UMCL); "group" = 1 for rows of
            one group (UniCL, FLAIR); "prior" = 1 for the pair and a little for reports that correlate in the
            text tower as it was at the first step (IMITATE).
        group: batch key that tells groups apart, e.g. text_id, study_id, or label (equal label vectors).
        normalise: "sum" or "none"; None = "none" for "prior", else "sum".
        strength: lambda of the prior; smoothing: its factor, None = the temperature (IMITATE).
        pooling: of the prior's text tower, see `report_states`.
        ceiling: cosine at which a positive (target 1) is drawn no closer (Jang et al.), None = none.
        temperature, learnable, max_scale: see `InfoNce`; FLAIR clamps at 100.
    """

    targets: str = "labels"
    group: str = "text_id"
    normalise: str | None = None
    strength: float = 0.2
    smoothing: float | None = None
    pooling: str = "pooled"
    ceiling: float | None = None
    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch, and for the prior the frozen text tower's view of it."""
        return (Clean(), FROZEN_TEXT) if self.targets == "prior" else (Clean(),)

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale.

        Raises:
            UserError: an unknown choice, or the batch lacks what the targets are made of.
        """
        del train
        clean = passes[0]
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        similarity = scaled_products(image, text, 1.0)
        targets = self._targets(passes)
        if self.ceiling is not None:
            similarity = loss_lib.relax_positives(similarity, targets >= 1, self.ceiling)
        normalise: Any = self.normalise or ("none" if self.targets == "prior" else "sum")
        require_choice(normalise, ("sum", "none"), "target_contrast normalise")
        loss = loss_lib.target_contrast(
            scale * similarity,
            targets,
            normalise=normalise,
            example_mask=clean.batch.get("example_mask"),
        )
        return loss, {"logit_scale": scale}

    def _targets(self, passes: tuple[Pass, ...]) -> Array:
        """Targets [B,B]."""
        batch = passes[0].batch
        require_choice(self.targets, ("labels", "group", "prior"), "target_contrast targets")
        if self.targets == "prior":
            frozen = passes[1]
            states = report_states(frozen.outputs, frozen.batch, self.pooling, "target_contrast")
            smoothing = self.temperature if self.smoothing is None else self.smoothing
            return loss_lib.clinical_prior(states, strength=self.strength, smoothing=smoothing)
        if self.targets == "group":
            require(
                batch, (self.group,), "target_contrast", "set its `group` to a key of the batch"
            )
            groups = batch[self.group]
            if self.group == "label":  # what is not known counts as absent
                groups = groups * batch["label_mask"]
            return loss_lib.same_group(groups)
        return _label_targets(batch)


def _label_targets(batch: Batch) -> Array:
    """Cosines [B,B] of the known labels of images and texts, those below 0 left out; a pair has 1."""
    similarity = loss_lib.label_similarity(
        batch["label"] * batch["label_mask"], batch["text_label"] * batch["text_label_mask"]
    )
    # A row without any known finding would have no target at all.
    empty = jnp.all(similarity <= 0, axis=1) | jnp.all(similarity <= 0, axis=0)
    return jnp.maximum(similarity, jnp.diag(empty.astype(jnp.float32)))
