"""Triplet loss on the global embeddings (JoImTeR-Net, MLMI 2021)."""

from __future__ import annotations

from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.losses.word_region import matching_triplet
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class MatchingTriplet(Objective):
    """A pair's cosine must lead those of other pairs by a margin; both sides are anchors, and added.

    JoImTeR-Net has it with the weight 2 beside the same loss on word-region scores (`word_region` with
    `triplet_weight=2`) and the contrast of both.

    Fields:
        margin: of the cosines (0.5 in the released code).
    """

    margin: float = 0.5

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: image_anchor, text_anchor."""
        del train
        (clean,) = passes
        scores = scaled_products(clean.outputs["image_embed"], clean.outputs["text_embed"], 1.0)
        image, text = matching_triplet(
            scores, margin=self.margin, example_mask=clean.batch.get("example_mask")
        )
        return image + text, {"image_anchor": image, "text_anchor": text}
