"""Alignment without negatives and orthogonal image features (M-FLAG, arXiv 2307.08347)."""

from __future__ import annotations

from typing import Any

from medvlp_jax.losses.redundancy import cosine_alignment, orthogonality
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.types import Array, Metrics


class Mflag(Objective):
    """Cosine of `image_embed` and `text_embed`, and orthogonality of `image_pooled`.

    M-FLAG freezes the text encoder (`optim.groups`); a tower that follows the text alone would collapse.

    Fields:
        off_weight: lambda of the orthogonality, off the diagonal.
        denominator: of the autocorrelation, None = the number of rows.
        alignment_weight, orthogonality_weight: of the two parts.
        variant: "paper" or "released", which counts the alignment twice and the orthogonality half.
    """

    off_weight: float = 0.0051
    denominator: float | None = None
    alignment_weight: float = 1.0
    orthogonality_weight: float = 1.0
    variant: str = "paper"

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: alignment, orthogonality."""
        del train
        (clean,) = passes
        require_choice(self.variant, ("paper", "released"), "mflag variant")
        options: dict[str, Any] = dict(
            variant=self.variant, example_mask=clean.batch.get("example_mask")
        )
        outputs = clean.outputs
        aligned = cosine_alignment(outputs["image_embed"], outputs["text_embed"], **options)
        gap = orthogonality(
            outputs["image_pooled"],
            off_weight=self.off_weight,
            denominator=self.denominator,
            **options,
        )
        loss = self.alignment_weight * aligned + self.orthogonality_weight * gap
        return loss, {"alignment": aligned, "orthogonality": gap}
