"""Alignment and uniformity of the two embeddings instead of a contrast (arXiv 2005.10242)."""

from __future__ import annotations

from medvlp_jax.losses import uniformity as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class Uniformity(Objective):
    """L = alignment_weight * L_align + uniformity_weight * mean of L_uniform of images and texts.

    Fields:
        alpha: exponent of the alignment; t: of the uniformity (2 and 2 in the paper).
        alignment_weight, uniformity_weight: 1 and 1 give the paper's L_align + L_uniform.
    """

    alpha: float = 2.0
    t: float = 2.0
    alignment_weight: float = 1.0
    uniformity_weight: float = 1.0

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: alignment, uniformity."""
        del train
        (clean,) = passes
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        rows = clean.batch.get("example_mask")
        aligned = loss_lib.alignment(image, text, alpha=self.alpha, example_mask=rows)
        sides = [loss_lib.uniformity(x, t=self.t, example_mask=rows) for x in (image, text)]
        spread = (sides[0] + sides[1]) / 2
        loss = self.alignment_weight * aligned + self.uniformity_weight * spread
        return loss, {"alignment": aligned, "uniformity": spread}
