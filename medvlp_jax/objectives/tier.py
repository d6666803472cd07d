"""Few patches for each token, few tokens for each patch (TIER, arXiv 2212.06710)."""

from __future__ import annotations

from typing import Any

from medvlp_jax.losses.tier import token_patch_entropy
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.objectives.word_region import TOKEN_REMEDY
from medvlp_jax.types import Array, Metrics


class Tier(Objective):
    """Entropy regulariser beside `info_nce`, on `image_token_embed` and `text_token_embed`.

    Fields:
        patch_weight: lambda of the tokens' entropy over the patches; token_weight: of the patches' entropy
            over the tokens. The paper searches both between 0.1 and 0.2.
        entropy_temperature: of the similarities.
        variant: "paper" or "released", see `losses.tier.token_patch_entropy`.
    """

    patch_weight: float = 0.1
    token_weight: float = 0.1
    entropy_temperature: float = 1.0
    variant: str = "paper"

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: token_entropy, patch_entropy."""
        del train
        (clean,) = passes
        require_choice(self.variant, ("paper", "released"), "tier variant")
        require(clean.outputs, ("image_token_embed", "text_token_embed"), "tier", TOKEN_REMEDY)
        choice: dict[str, Any] = dict(variant=self.variant)
        tokens, patches = token_patch_entropy(
            clean.outputs["image_token_embed"],
            clean.outputs["text_token_embed"],
            clean.outputs["text_token_mask"],
            temperature=self.entropy_temperature,
            example_mask=clean.batch.get("example_mask"),
            **choice,
        )
        loss = self.patch_weight * tokens + self.token_weight * patches
        return loss, {"token_entropy": tokens, "patch_entropy": patches}
