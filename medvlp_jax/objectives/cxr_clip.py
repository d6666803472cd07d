"""Two images and two texts of each study against each other (CXR-CLIP, arXiv 2310.13292)."""

from __future__ import annotations

import flax.linen as nn

from medvlp_jax.losses import cxr_clip as loss_lib
from medvlp_jax.losses.info_nce import retrieval_accuracy
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, SecondImage, SecondText
from medvlp_jax.objectives.inputs import dropped_negatives
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class CxrClip(Objective):
    """Multi-view, image and text contrast; needs `data.image.views=2` and `data.text.second`.

    Fields:
        temperature, learnable, max_scale: see `InfoNce`; the released code does not clamp the scale.
        image_weight: of the contrast of the two images; text_weight: of the two texts.
        duplicates: "ignore", "mask" or "mask_patient", see `InfoNce`.
    """

    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    image_weight: float = 1.0
    text_weight: float = 0.5
    duplicates: str = "ignore"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch, that with the second images, that with the second texts."""
        return (Clean(), SecondImage(), SecondText())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, accuracy, and the three parts of the loss."""
        del train
        clean, second_image, second_text = passes
        scale = logit_scale(
            self, self.temperature, learnable=self.learnable, max_scale=self.max_scale
        )
        drop = dropped_negatives(clean.batch, self.duplicates, "cxr_clip")
        masks = dict(example_mask=clean.batch.get("example_mask"), drop_negatives=drop)
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        loss, parts = loss_lib.cxr_clip(
            (image, second_image.outputs["image_embed"]),
            (text, second_text.outputs["text_embed"]),
            scale,
            image_weight=self.image_weight,
            text_weight=self.text_weight,
            **masks,
        )
        accuracy = retrieval_accuracy(image, text, **masks)
        return loss, {"logit_scale": scale, "accuracy": accuracy, **parts}
