"""SigLIP's text transformer (arXiv 2303.15343, section 4): not causal, pre-LN, read at the last position.

SigLIP was trained on texts that are padded to a fixed length (64 tokens) and looks at the padding: no mask
takes part in its attention, and the last position, mostly padding itself, is the one that is read. So a text
has to come at the length of training (`data.text.max_length=64`, the pipeline pads to it); at another length
the result is another one.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import clip_text, layers
from medvlp_jax.types import Array, Outputs


def _variant(width: int, depth: int, heads: int, **options: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width, **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "test": _variant(32, 2, 2, vocab_size=512),
    "siglip-B/16": _variant(768, 12, 12),
    "siglip-L/16": _variant(1024, 24, 16),
    "siglip-So400m/14": _variant(1152, 27, 16) | {"mlp_dim": 4304},
}
"""Constructor arguments per variant; `siglip-*` are named after the image tower they belong to."""

TORCH_RULES: list[tuple[str, str, str]] = [
    *clip_text.TORCH_RULES,
    (r"head/kernel", "head.weight", "linear"),
    (r"head/bias", "head.bias", "copy"),
]
"""Names of `transformers.SiglipTextModel` (without the `text_model.` prefix), in the form explained at
`vit.TORCH_RULES`."""

SOURCES: dict[str, list[tuple[str, str, str]]] = {"transformers SigLIP": TORCH_RULES}
"""Namings that `interop.pretrained` recognises."""


class Encoder(nn.Module):
    """SigLIP text encoder. Sizes come from `VARIANTS`.

    Fields:
        width, depth, heads, mlp_dim, vocab_size: sizes.
        max_positions: rows of the position table, the length that texts are padded to.
        head_dim: size of the linear head's output, None = width. SigLIP has no further projection.
        dropout, attention_dropout: rates, 0 as published; attention_dropout None = the same as dropout.
        last_attention: also return the attention of the last block.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 32000
    max_positions: int = 64
    head_dim: int | None = None
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float | None = None
    last_attention: bool = False
    remat: layers.Remat = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array, *, train: bool = False) -> Outputs:
        """Encodes token ids.

        Args:
            input_ids: [B, L] int32, padded to the length of training, padding last.
            attention_mask: [B, L]; not read, see the module. It keeps the call that of the other towers.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            tokens [B, L, D] after the final norm; pooled [B, head_dim], the head of the last position;
            hidden: tuple of depth + 1 arrays [B, L, D], the embeddings, then each block's output (before the
            final norm); attention [B, heads, L, L] of the last block if `last_attention`.

        Raises:
            UserError: the text is longer than the position table.
        """
        del attention_mask
        x = self._embed(input_ids)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        hidden, probs = self._blocks(x, train)
        tokens = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1])
        head = layers.Dense(self.head_dim or self.width, dtype=self.dtype, name="head")
        outputs: Outputs = {
            "tokens": tokens,
            "hidden": tuple(hidden),
            "pooled": head(tokens[:, -1]),
        }
        if self.last_attention:
            outputs["attention"] = probs
        return outputs

    def _embed(self, input_ids: Array) -> Array:
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise UserError(
                f"text of {length} tokens is longer than the {self.max_positions} positions of the text "
                f"encoder; set the text length (max_length) to {self.max_positions} or raise max_positions"
            )
        init = nn.initializers.normal(self.width**-0.5)
        words = nn.Embed(self.vocab_size, self.width, embedding_init=init, name="word_embed")
        places = nn.Embed(
            self.max_positions, self.width, embedding_init=init, name="position_embed"
        )
        return (words(input_ids) + places(jnp.arange(length)[None])).astype(self.dtype)

    def _blocks(self, x: Array, train: bool) -> tuple[list[Array], Array | None]:
        return layers.block_stack(
            layers.PreNormBlock,
            self.depth,
            x,
            None,
            train=train,
            last_attention=self.last_attention,
            remat=self.remat,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            eps=self.layer_norm_eps,
            activation=self.activation,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            implementation=self.attention,
            dtype=self.dtype,
        )
