"""Contrast of words and image regions: GLoRIA (ICCV 2021), BioViL-L (2204.09817), JoImTeR-Net (MLMI 2021)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from medvlp_jax.losses import word_region as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import dropped_negatives, require, require_choice
from medvlp_jax.types import Array, Metrics

TOKEN_REMEDY = "set model.image_token_projection and model.text_token_projection"


class WordRegion(Objective):
    """Local loss between `image_token_embed` and `text_token_embed`, both directions added.

    GLoRIA's text tokens are words (`merge_words=True`, `last_layers=4`).

    Fields:
        temp1, temp2, temp3: inverse temperatures of attention, aggregation over words and contrast.
        variant: "paper" or "released", see `losses.word_region.word_region_scores`.
        agg: "lse", "sum" or "mean"; None = as `variant`.
        words_first: whether the attention passes a softmax over the words first; None = as `variant`.
        contrast_weight: of the contrast; triplet_weight: of JoImTeR-Net's triplet loss on the same scores
            (2 in its released code, beside the contrast), with its margin.
        tile: texts at a time, which bounds the memory: with 48 pairs, 361 regions, 97 words and width 768
            value and gradient take 129 MiB at 1, 860 MiB at 8 and 5.1 GiB at once (None).
        duplicates: "ignore", "mask" or "mask_patient", see `InfoNce`.
    """

    temp1: float = 4.0
    temp2: float = 5.0
    temp3: float = 10.0
    variant: str = "paper"
    agg: str | None = None
    words_first: bool | None = None
    contrast_weight: float = 1.0
    triplet_weight: float = 0.0
    margin: float = 0.5
    tile: int | None = 8
    duplicates: str = "ignore"

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: image_to_text, text_to_image, and triplet where it is used."""
        del train
        (clean,) = passes
        outputs, batch = clean.outputs, clean.batch
        require_choice(self.variant, ("paper", "released"), "word_region variant")
        if self.agg is not None:
            require_choice(self.agg, ("lse", "sum", "mean"), "word_region agg")
        require(outputs, ("image_token_embed", "text_token_embed"), "word_region", TOKEN_REMEDY)
        choices: dict[str, Any] = dict(variant=self.variant, agg=self.agg)
        mask = outputs["text_token_mask"]
        scores = loss_lib.word_region_scores(
            outputs["image_token_embed"],
            outputs["text_token_embed"],
            mask,
            temp1=self.temp1,
            temp2=self.temp2,
            words_first=self.words_first,
            tile=self.tile,
            **choices,
        )
        rows = batch.get("example_mask")
        to_text, to_image = loss_lib.word_region(
            scores,
            mask,
            temp3=self.temp3,
            example_mask=rows,
            drop_negatives=dropped_negatives(batch, self.duplicates, "word_region"),
        )
        loss = self.contrast_weight * (to_text + to_image)
        metrics = {"image_to_text": to_text, "text_to_image": to_image}
        if self.triplet_weight:
            triplet = loss_lib.matching_triplet(
                scores,
                margin=self.margin,
                example_mask=loss_lib.rows_with_words(mask, rows),
            )
            metrics["triplet"] = jnp.asarray(sum(triplet))
            loss = loss + self.triplet_weight * metrics["triplet"]
        return loss, metrics
