"""CLIP's text transformer (arXiv 2103.00020, section 2.4): causal, pre-LN, read at the end-of-text token."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, pooling, vit
from medvlp_jax.types import Array, Outputs


def _variant(width: int, depth: int, heads: int, **options: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width, **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "test": _variant(32, 2, 2, vocab_size=512, max_positions=128),
    "quickstart": _variant(128, 2, 4),
    "clip-B/16": _variant(512, 12, 8),
    "clip-B/32": _variant(512, 12, 8),
    "clip-L/14": _variant(768, 12, 12),
}
"""Constructor arguments per variant; `clip-*` are the text towers of OpenAI's CLIP, named after the image
tower they belong to (those of B/16 and B/32 are the same)."""

TORCH_RULES: list[tuple[str, str, str]] = [
    (r"word_embed/embedding", "embeddings.token_embedding.weight", "embedding"),
    (r"position_embed/embedding", "embeddings.position_embedding.weight", "embedding"),
    *vit.CLIP_BLOCK_RULES,
    (r"norm/scale", "final_layer_norm.weight", "copy"),
    (r"norm/bias", "final_layer_norm.bias", "copy"),
]
"""Names of `transformers.CLIPTextModel` (without the `text_model.` prefix), in the form explained at
`vit.TORCH_RULES`."""

OPENAI_RULES: list[tuple[str, str, str]] = [
    (r"word_embed/embedding", "token_embedding.weight", "embedding"),
    (r"position_embed/embedding", "positional_embedding", "embedding"),
    *vit.OPENAI_BLOCK_RULES,
    (r"norm/scale", "ln_final.weight", "copy"),
    (r"norm/bias", "ln_final.bias", "copy"),
]
"""Names of OpenAI's and open_clip's checkpoints, in that form. A whole checkpoint also holds the image tower
(`visual.*`), `text_projection` ([width, embed], like our kernels: transform "copy") and `logit_scale`."""

SOURCES: dict[str, list[tuple[str, str, str]]] = {
    "transformers CLIP": TORCH_RULES,
    "OpenAI CLIP or open_clip": OPENAI_RULES,
}
"""Namings that `interop.pretrained` recognises."""


class Encoder(nn.Module):
    """CLIP text encoder. Sizes come from `VARIANTS`.

    Fields:
        width, depth, heads, mlp_dim, vocab_size, max_positions: sizes.
        eos_token_id: the token at which the text is read, see `pooling.eos_position`; 49407 for CLIP's
            tokenizer, that of [SEP] for a BERT tokenizer. None = the highest id of the text, which is the
            same with CLIP's tokenizer and wrong with others.
        activation: "quick_gelu" for OpenAI's weights, "gelu" for most of open_clip's.
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
    vocab_size: int = 49408
    max_positions: int = 77
    eos_token_id: int | None = None
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
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
            input_ids: [B, L] int32; attention_mask: [B, L], nonzero for real tokens, padding last.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            tokens [B, L, D] after the final norm; pooled [B, D], the token at the end of the text; hidden:
            tuple of depth + 1 arrays [B, L, D], the embeddings, then each block's output (before the final
            norm); attention [B, heads, L, L] of the last block if `last_attention`. States at padding
            positions are finite and meaningless.

        Raises:
            UserError: the text is longer than the position table.
        """
        x = self._embed(input_ids)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        hidden, probs = self._blocks(x, layers.causal_mask(attention_mask), train)
        tokens = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1])
        end = pooling.eos_position(input_ids, attention_mask, self.eos_token_id)
        outputs: Outputs = {
            "tokens": tokens,
            "hidden": tuple(hidden),
            "pooled": pooling.take_position(tokens, end),
        }
        if self.last_attention:
            outputs["attention"] = probs
        return outputs

    def _embed(self, input_ids: Array) -> Array:
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise UserError(
                f"text of {length} tokens is longer than the {self.max_positions} positions of the text "
                f"encoder; set the text length (max_length) to at most {self.max_positions} or raise "
                "max_positions"
            )
        normal = nn.initializers.normal  # standard deviations of the released code
        words = nn.Embed(
            self.vocab_size, self.width, embedding_init=normal(0.02), name="word_embed"
        )
        places = nn.Embed(
            self.max_positions, self.width, embedding_init=normal(0.01), name="position_embed"
        )
        return (words(input_ids) + places(jnp.arange(length)[None])).astype(self.dtype)

    def _blocks(self, x: Array, mask: Array, train: bool) -> tuple[list[Array], Array | None]:
        return layers.block_stack(
            layers.PreNormBlock,
            self.depth,
            x,
            mask,
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
