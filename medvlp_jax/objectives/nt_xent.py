"""Global contrast with negatives of both modalities (NT-Xent; an option of LoVT, arXiv 2112.02889)."""

from __future__ import annotations

from medvlp_jax.losses import nt_xent as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class NtXent(Objective):
    """Contrast of `image_embed` and `text_embed`; other images, too, are negatives of an image.

    Fields:
        temperature: tau.
        same_modality: False leaves the negatives of the own modality out: `info_nce`.
        image_to_text_weight: weight of the direction with images as anchors (LoVT: 0.75).
    """

    temperature: float = 0.1
    same_modality: bool = True
    image_to_text_weight: float = 0.75

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: image_to_text, text_to_image."""
        del train
        (clean,) = passes
        to_text, to_image = loss_lib.nt_xent(
            clean.outputs["image_embed"],
            clean.outputs["text_embed"],
            temperature=self.temperature,
            same_modality=self.same_modality,
            example_mask=clean.batch.get("example_mask"),
        )
        w = self.image_to_text_weight
        return w * to_text + (1 - w) * to_image, {
            "image_to_text": to_text,
            "text_to_image": to_image,
        }
