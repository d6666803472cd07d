"""Mutual information of regions and sentences (Liao et al., arXiv 2103.04537)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from medvlp_jax.losses import mutual_information as loss_lib
from medvlp_jax.losses.info_nce import duplicate_negatives
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, require_choice, sentence_states
from medvlp_jax.types import Array, Metrics


class LocalMutualInformation(Objective):
    """A critic learns to tell regions and sentences of one study from those of two.

    Needs `data.text.sentence_ids=True`. Images of the same study are no negatives.

    Fields:
        estimator: "infonce", "dv" or "jsd"; variant: "paper" or "released"; see
            `losses.mutual_information.mutual_information`.
        select: "max" = a sentence has the score of its best region, "mean" = the mean over the regions.
        hidden: widths of the critic's hidden layers; () scores by the product of region and sentence, after
            one linear layer each of `features`.
        features: see `hidden`.
        max_sentences: sentences kept of each report; sentence_pooling: "mean" or "max" over their pieces.
        tile: texts at a time, which bounds the memory; None = all at once.
    """

    estimator: str = "infonce"
    variant: str = "paper"
    select: str = "max"
    hidden: tuple[int, ...] = (1024, 512)
    features: int = 512
    max_sentences: int = 16
    sentence_pooling: str = "mean"
    tile: int | None = 1

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        del train
        (clean,) = passes
        name = "local_mutual_information"
        require_choice(self.estimator, ("infonce", "dv", "jsd"), f"{name} estimator")
        require_choice(self.variant, ("paper", "released"), f"{name} variant")
        require_choice(self.select, ("max", "mean"), f"{name} select")
        require(clean.outputs, ("image_tokens",), name, "set model.image_encoder")
        sentences, mask = sentence_states(
            clean.batch, clean.outputs, self.max_sentences, self.sentence_pooling, name
        )
        regions = clean.outputs["image_tokens"]
        if self.hidden:
            critic = self._perceptron(regions.shape[-1] + sentences.shape[-1])
        else:
            critic = loss_lib.dot_critic
            regions = nn.Dense(self.features, name="region_projection")(regions)
            sentences = nn.Dense(self.features, name="sentence_projection")(sentences)
        choices: dict[str, Any] = dict(select=self.select, tile=self.tile)
        scores = loss_lib.sentence_scores(regions, sentences, critic, **choices)
        drop = None
        if "study_id" in clean.batch:
            drop = duplicate_negatives(clean.batch["study_id"])
        bound: dict[str, Any] = dict(estimator=self.estimator, variant=self.variant)
        loss = loss_lib.mutual_information(
            scores,
            mask,
            example_mask=clean.batch.get("example_mask"),
            drop_negatives=drop,
            **bound,
        )
        return loss, {}

    def _perceptron(self, width: int) -> loss_lib.Critic:
        """The critic on the concatenation of region and sentence, together `width` wide."""
        layers = []
        for i, features in enumerate((*self.hidden, 1)):
            kernel = self.param(
                f"critic_{i}_kernel", nn.initializers.lecun_normal(), (width, features)
            )
            bias = self.param(f"critic_{i}_bias", nn.initializers.zeros_init(), (features,))
            layers.append((kernel, bias))
            width = features
        return loss_lib.mlp_critic(layers)
