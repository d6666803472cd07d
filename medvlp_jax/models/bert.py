"""BERT (arXiv 1810.04805) and RoBERTa (1907.11692) text encoders."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, pooling
from medvlp_jax.types import Array, Outputs


def _variant(width: int, depth: int, heads: int, **options: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width, **options}


_ROBERTA = {
    "vocab_size": 50265,
    "max_positions": 514,
    "token_types": 1,
    "layer_norm_eps": 1e-5,
    "position_ids": "roberta",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "test": _variant(32, 2, 2, vocab_size=512, max_positions=128),
    "quickstart": _variant(128, 4, 4, vocab_size=4096, max_positions=256),
    "tiny": _variant(128, 2, 2),
    "mini6": _variant(384, 6, 12),
    "base": _variant(768, 12, 12),
    "base-cased": _variant(768, 12, 12, vocab_size=28996),
    "large": _variant(1024, 24, 16),
    "roberta-base": _variant(768, 12, 12, **_ROBERTA),
    "roberta-large": _variant(1024, 24, 16, **_ROBERTA),
}
"""Constructor arguments per variant. "base-cased" is the size of BioClinicalBERT, "base" that of
BERT-base-uncased and, with its own vocab_size, of CXR-BERT, PubMedBERT and SciBERT."""

TORCH_RULES: list[tuple[str, str, str]] = [
    (r"word_embed/embedding", "embeddings.word_embeddings.weight", "embedding"),
    (r"position_embed/embedding", "embeddings.position_embeddings.weight", "embedding"),
    (r"token_type_embed/embedding", "embeddings.token_type_embeddings.weight", "embedding"),
    (r"embed_norm/scale", "embeddings.LayerNorm.weight", "copy"),
    (r"embed_norm/bias", "embeddings.LayerNorm.bias", "copy"),
    (
        r"block_(\d+)/attention/(query|key|value)/kernel",
        r"encoder.layer.\1.attention.self.\2.weight",
        "linear",
    ),
    (
        r"block_(\d+)/attention/(query|key|value)/bias",
        r"encoder.layer.\1.attention.self.\2.bias",
        "copy",
    ),
    (
        r"block_(\d+)/attention/out/kernel",
        r"encoder.layer.\1.attention.output.dense.weight",
        "linear",
    ),
    (r"block_(\d+)/attention/out/bias", r"encoder.layer.\1.attention.output.dense.bias", "copy"),
    (
        r"block_(\d+)/attention_norm/scale",
        r"encoder.layer.\1.attention.output.LayerNorm.weight",
        "copy",
    ),
    (
        r"block_(\d+)/attention_norm/bias",
        r"encoder.layer.\1.attention.output.LayerNorm.bias",
        "copy",
    ),
    (r"block_(\d+)/mlp/fc1/kernel", r"encoder.layer.\1.intermediate.dense.weight", "linear"),
    (r"block_(\d+)/mlp/fc1/bias", r"encoder.layer.\1.intermediate.dense.bias", "copy"),
    (r"block_(\d+)/mlp/fc2/kernel", r"encoder.layer.\1.output.dense.weight", "linear"),
    (r"block_(\d+)/mlp/fc2/bias", r"encoder.layer.\1.output.dense.bias", "copy"),
    (r"block_(\d+)/mlp_norm/scale", r"encoder.layer.\1.output.LayerNorm.weight", "copy"),
    (r"block_(\d+)/mlp_norm/bias", r"encoder.layer.\1.output.LayerNorm.bias", "copy"),
    (r"pooler/kernel", "pooler.dense.weight", "linear"),
    (r"pooler/bias", "pooler.dense.bias", "copy"),
]
"""Names of `transformers.BertModel` and `RobertaModel` (without the `bert.` / `roberta.` prefix), in the form
explained at `vit.TORCH_RULES`."""


class Encoder(nn.Module):
    """BERT or RoBERTa text encoder. Sizes come from `VARIANTS`.

    Fields:
        width, depth, heads, mlp_dim, vocab_size: sizes.
        max_positions: rows of the position table; RoBERTa loses the first `padding_idx + 1` of them.
        token_types: rows of the token-type table, 0 for none.
        position_ids: "absolute" 0..L-1 (BERT), or "roberta": padding_idx + 1, 2, ... over the real tokens
            and padding_idx on padding.
        pooling: "pooler" = tanh(dense) of the first token (BertModel), "cls" = first token, "eos" = last real
            token (CXR-CLIP), "mean" or "max" over the real tokens (ConVIRT: max), "attention" =
            `pooling.AttentionPool` with as many heads as the blocks.
        dropout, attention_dropout: rates, 0.1 as published; attention_dropout None = the same as dropout.
        init_std: standard deviation of the initial weights at width 768; narrower towers get it scaled by
            sqrt(768 / width), which keeps the size of the activations.
        last_attention: also return the attention of the last block.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`; with attention_dropout it is einsum in training.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 30522
    max_positions: int = 512
    token_types: int = 2
    position_ids: Literal["absolute", "roberta"] = "absolute"
    padding_idx: int = 1
    pooling: Literal["pooler", "cls", "eos", "mean", "max", "attention"] = "pooler"
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float | None = None
    init_std: float = 0.02
    last_attention: bool = False
    remat: layers.Remat = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        *,
        token_type_ids: Array | None = None,
        train: bool = False,
    ) -> Outputs:
        """Encodes token ids.

        Args:
            input_ids: [B, L] int32; attention_mask: [B, L], nonzero for real tokens.
            token_type_ids: [B, L] int32, None = all 0.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            tokens [B, L, D]; pooled [B, D]; hidden: tuple of depth + 1 arrays [B, L, D], the embeddings
            first; attention [B, heads, L, L] of the last block if `last_attention`. States at padding
            positions are finite and meaningless.

        Raises:
            UserError: the text is longer than the position table.
        """
        x = self._embed(input_ids, attention_mask, token_type_ids)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        hidden, probs = self._blocks(x, attention_mask, train)
        outputs: Outputs = {
            "tokens": hidden[-1],
            "hidden": tuple(hidden),
            "pooled": self._pool(hidden[-1], attention_mask, train),
        }
        if self.last_attention:
            outputs["attention"] = probs
        return outputs

    def _kernel_init(self) -> layers.Initializer:
        return nn.initializers.normal(self.init_std * (768 / self.width) ** 0.5)

    def _embed(self, input_ids: Array, mask: Array, token_type_ids: Array | None) -> Array:
        length = input_ids.shape[1]
        usable = self.max_positions - self._offset()
        if length > usable:
            raise UserError(
                f"text of {length} tokens is longer than the {usable} positions of the text encoder; "
                f"set the text length (max_length) to at most {usable} or raise max_positions"
            )
        init = nn.initializers.normal(self.init_std)
        embed = functools.partial(nn.Embed, features=self.width, embedding_init=init)
        # Looked up and summed in float32: casting a whole table costs more than casting its sum.
        x = embed(self.vocab_size, name="word_embed")(input_ids)
        x = x + embed(self.max_positions, name="position_embed")(self._position_ids(mask))
        if self.token_types:
            types = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
            x = x + embed(self.token_types, name="token_type_embed")(types)
        return layers.LayerNorm(self.layer_norm_eps, self.dtype, name="embed_norm")(x)

    def _offset(self) -> int:
        if self.position_ids == "absolute":
            return 0
        if self.position_ids == "roberta":
            return self.padding_idx + 1
        raise UserError(
            f"position_ids={self.position_ids!r} is unknown; choose absolute or roberta"
        )

    def _position_ids(self, mask: Array) -> Array:
        if self.position_ids == "absolute":
            return jnp.arange(mask.shape[1])[None]
        real = (mask != 0).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.padding_idx

    def _blocks(self, x: Array, mask: Array, train: bool) -> tuple[list[Array], Array | None]:
        return layers.block_stack(
            layers.PostNormBlock,
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
            kernel_init=self._kernel_init(),
            implementation=self.attention,
            dtype=self.dtype,
        )

    def _attention_dropout(self) -> float:
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    def _pool(self, tokens: Array, mask: Array, train: bool) -> Array:
        if self.pooling == "pooler":
            dense = layers.Dense(
                self.width, dtype=self.dtype, kernel_init=self._kernel_init(), name="pooler"
            )
            return jnp.tanh(dense(tokens[:, 0]))
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "eos":
            return pooling.take_position(tokens, pooling.last_position(mask))
        if self.pooling == "mean":
            return pooling.masked_mean(tokens, mask)
        if self.pooling == "max":
            return pooling.masked_max(tokens, mask)
        if self.pooling == "attention":
            pool = pooling.AttentionPool(
                self.heads,
                dropout=self._attention_dropout(),
                kernel_init=self._kernel_init(),
                implementation=self.attention,
                dtype=self.dtype,
                name="attention_pool",
            )
            return pool(tokens, mask, train=train)
        raise UserError(
            f"pooling={self.pooling!r} is unknown; choose pooler, cls, eos, mean, max or attention"
        )
