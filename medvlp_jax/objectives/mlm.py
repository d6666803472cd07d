"""Masked language modelling, conditioned on the image where there is a fusion encoder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.masked import masked_language
from medvlp_jax.models.heads import MlmHead
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Corruption, MaskText
from medvlp_jax.types import Array, Metrics


class Mlm(Objective):
    """BERT's masked prediction (arXiv 1810.04805) on the fused text stream (M3AE, 2209.07098).

    Fields:
        vocab_size, mask_id, special_ids: of the tokenizer (filled in by the builder).
        ratio: share of the units that is predicted.
        whole_word: mask all pieces of a word together.
        mask_share, random_share: 80 % [MASK], 10 % random, the rest unchanged.
        layer_norm_eps: of the head.
    """

    vocab_size: int = 0
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()
    ratio: float = 0.15
    whole_word: bool = True
    mask_share: float = 0.8
    random_share: float = 0.1
    layer_norm_eps: float = 1e-12
    dtype: Any = jnp.float32

    def corruptions(self) -> tuple[Corruption, ...]:
        """Masked text, image untouched.

        Raises:
            UserError: the tokenizer has no mask token.
        """
        if self.mask_id is None or self.vocab_size < 1:
            raise UserError(
                "objective mlm needs a tokenizer with a mask token: choose another data.text.tokenizer, or "
                "set vocab_size and mask_id of the objective"
            )
        return (
            MaskText(
                vocab_size=self.vocab_size,
                mask_id=self.mask_id,
                ratio=self.ratio,
                whole_word=self.whole_word,
                mask_share=self.mask_share,
                random_share=self.random_share,
                special_ids=self.special_ids,
            ),
        )

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: accuracy of the predicted tokens."""
        del train
        (masked,) = passes
        fused = "fused_text_tokens" in masked.outputs
        states = masked.outputs["fused_text_tokens" if fused else "text_states"]
        head = MlmHead(self.vocab_size, self.layer_norm_eps, dtype=self.dtype, name="head")
        loss, accuracy = masked_language(
            head(states), masked.batch["mlm_labels"], example_mask=masked.batch.get("example_mask")
        )
        return loss, {"accuracy": accuracy}
