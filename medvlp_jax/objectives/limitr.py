"""Local losses of LIMITR (arXiv 2303.11755), across the batch and within each pair."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses import limitr as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import dropped_negatives, require, require_choice
from medvlp_jax.objectives.word_region import TOKEN_REMEDY
from medvlp_jax.types import Array, Metrics


class Limitr(Objective):
    """External and internal loss between `image_token_embed` and `text_token_embed`.

    LIMITR's global loss is `info_nce` with temperature 0.1, not learnable, with twice its weight. Its scores
    have a dropout of 0.4 in the released code, which is left out here.

    Fields:
        temp1, temp3: inverse temperatures of the attention and of the external contrast.
        internal_temperature, scale: of the internal contrast, and its factor.
        external_weight, internal_weight: of the two losses (the released launch has 0 for the second).
        variant: "paper" or "released", see `losses.limitr.limitr_internal`.
        tile: texts at a time in the external loss; None = all at once.
        duplicates: "ignore", "mask" or "mask_patient", see `InfoNce`.
    """

    temp1: float = 4.0
    temp3: float = 10.0
    internal_temperature: float = 0.1
    scale: float = 0.1
    external_weight: float = 1.0
    internal_weight: float = 1.0
    variant: str = "paper"
    tile: int | None = 8
    duplicates: str = "ignore"

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: external, internal."""
        del train
        (clean,) = passes
        outputs, batch = clean.outputs, clean.batch
        require_choice(self.variant, ("paper", "released"), "limitr variant")
        require(outputs, ("image_token_embed", "text_token_embed"), "limitr", TOKEN_REMEDY)
        image, text = outputs["image_token_embed"], outputs["text_token_embed"]
        mask, rows = outputs["text_token_mask"], batch.get("example_mask")
        words, regions = self._filtrations(image.shape[-1])
        scores = loss_lib.limitr_scores(
            image, text, mask, words, regions, temp1=self.temp1, tile=self.tile
        )
        external = sum(
            loss_lib.limitr_external(
                *scores,
                mask,
                temp3=self.temp3,
                example_mask=rows,
                drop_negatives=dropped_negatives(batch, self.duplicates, "limitr"),
            )
        )
        choice: dict[str, Any] = dict(variant=self.variant)
        internal = loss_lib.limitr_internal(
            image,
            text,
            text_token_mask=mask,
            temp1=self.temp1,
            temperature=self.internal_temperature,
            scale=self.scale,
            example_mask=rows,
            **choice,
        )
        loss = self.external_weight * external + self.internal_weight * internal
        return jnp.asarray(loss), {"external": jnp.asarray(external), "internal": internal}

    def _filtrations(self, width: int) -> tuple[loss_lib.Filtration, loss_lib.Filtration]:
        """Weights of the words' and of the regions' scores; only the last layer differs."""
        square, row = nn.initializers.xavier_uniform(), nn.initializers.normal(width**-0.5)
        zeros = nn.initializers.zeros_init()

        def layer(name: str, init: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
            kernel = self.param(f"{name}_kernel", init, shape)
            return kernel, self.param(f"{name}_bias", zeros, shape[1:])

        shared = (
            *layer("local", square, (width, width)),
            *layer("mean", square, (width, width)),
            *layer("common", row, (width,)),
        )
        return (
            loss_lib.Filtration(*shared, *layer("words", row, (width,))),
            loss_lib.Filtration(*shared, *layer("regions", row, (width,))),
        )
