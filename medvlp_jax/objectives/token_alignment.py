"""Token-wise alignment of words and patches within each pair (MGCA, arXiv 2210.06044, section 3.3)."""

from __future__ import annotations

import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import token_alignment as loss_lib
from medvlp_jax.models.pooling import merge_word_pieces
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Batch, Metrics, Outputs


class TokenAlignment(Objective):
    """Weights words and patches by the attention that the class token pays them.

    Needs a model with `image_token_projection`, `text_token_projection`, `merge_words=True`, and
    `text_encoder.last_attention=True`; without `image_encoder.last_attention` (ResNet) all patches
    weigh the same.

    Fields:
        temperature: tau_2.
        variant: "paper" or "released", see `losses.token_alignment`.
    """

    temperature: float = 0.1
    variant: str = "paper"

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        del train
        (clean,) = passes
        outputs, batch = clean.outputs, clean.batch
        if self.variant not in ("paper", "released"):
            raise UserError(f"token_alignment variant={self.variant!r}: choose paper or released")
        for key in ("image_token_embed", "text_token_embed", "text_attention"):
            if key not in outputs:
                raise UserError(
                    f"objective token_alignment needs the output {key}; set model.image_token_projection, "
                    "model.text_token_projection and model.text_encoder.last_attention=True"
                )
        patches = outputs["image_token_embed"]
        has_map = "image_attention" in outputs
        loss = loss_lib.token_alignment(
            patches,
            outputs["text_token_embed"],
            image_weights=_patch_weights(outputs, patches.shape[1]),
            text_weights=_word_weights(outputs, batch),
            text_token_mask=outputs["text_token_mask"],
            temperature=self.temperature,
            variant="released" if self.variant == "released" else "paper",
            normalise_patch_context=not has_map if self.variant == "released" else True,
            example_mask=batch.get("example_mask"),
        )
        return loss, {}


def _patch_weights(outputs: Outputs, count: int) -> Array:
    """[B,N] attention of the class token, mean over heads; uniform for encoders without one."""
    if "image_attention" not in outputs:
        rows = outputs["image_token_embed"].shape[0]
        return jnp.full((rows, count), 1.0 / count, jnp.float32)
    return loss_lib.clipped_weights(outputs["image_attention"][:, :, 0, -count:].mean(axis=1))


def _word_weights(outputs: Outputs, batch: Batch) -> Array:
    """[B,L] attention of [CLS], mean over heads, summed over the pieces of each word."""
    pieces = outputs["text_attention"][:, :, 0, :].mean(axis=1)
    words, mask = merge_word_pieces(pieces[..., None], batch["word_ids"])
    return loss_lib.clipped_weights(words[..., 0] * mask)
