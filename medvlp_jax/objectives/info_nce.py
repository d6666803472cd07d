"""Global image-text contrast: CLIP (arXiv 2103.00020), ConVIRT (2010.00747) and the systems on top of it."""

from __future__ import annotations

import flax.linen as nn

from medvlp_jax.losses import info_nce as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import dropped_negatives
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class InfoNce(Objective):
    """Bidirectional InfoNCE between `image_embed` and `text_embed`.

    Fields:
        temperature: initial (or fixed) temperature.
        learnable: whether `log_logit_scale` is a parameter; it is clamped at log(max_scale).
        max_scale: largest scale (CLIP: 100).
        image_to_text_weight: weight of the image-to-text direction (ConVIRT: 0.75).
        duplicates: "ignore" contrasts equal texts as the papers do; "mask" takes them out of the
            negatives (sister images of one study share a text); "mask_patient" takes all other rows of
            a patient out as well (`subject_id`).
    """

    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    image_to_text_weight: float = 0.5
    duplicates: str = "ignore"

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, accuracy (retrieval within the batch)."""
        del train
        (clean,) = passes
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        drop = dropped_negatives(clean.batch, self.duplicates, "info_nce")
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        masks = dict(example_mask=clean.batch.get("example_mask"), drop_negatives=drop)
        loss = loss_lib.info_nce(
            image, text, scale, image_to_text_weight=self.image_to_text_weight, **masks
        )
        accuracy = loss_lib.retrieval_accuracy(image, text, **masks)
        return loss, {"logit_scale": scale, "accuracy": accuracy}
