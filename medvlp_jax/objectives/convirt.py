"""Contrast of ConVIRT (arXiv 2010.00747) and REFERS (2111.03452) at a fixed temperature."""

from __future__ import annotations

from typing import cast

from medvlp_jax.losses import convirt as loss_lib
from medvlp_jax.losses.info_nce import retrieval_accuracy
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import dropped_negatives, require_choice
from medvlp_jax.types import Array, Metrics


class Convirt(Objective):
    """Bidirectional InfoNCE whose directions weigh 0.75 and 0.25.

    Fields:
        temperature: tau; image_to_text_weight: lambda.
        variant: "released" takes the gradient of the text-to-image term away, as the code of REFERS does.
        duplicates: "ignore", "mask" or "mask_patient", see `InfoNce`.
    """

    temperature: float = 0.1
    image_to_text_weight: float = 0.75
    variant: str = "paper"
    duplicates: str = "ignore"

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: accuracy (retrieval within the batch)."""
        del train
        (clean,) = passes
        require_choice(self.variant, ("paper", "released"), "convirt variant")
        drop = dropped_negatives(clean.batch, self.duplicates, "convirt")
        masks = dict(example_mask=clean.batch.get("example_mask"), drop_negatives=drop)
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        loss = loss_lib.convirt(
            image,
            text,
            temperature=self.temperature,
            image_to_text_weight=self.image_to_text_weight,
            variant=cast(loss_lib.Variant, self.variant),
            **masks,
        )
        return loss, {"accuracy": retrieval_accuracy(image, text, **masks)}
