"""Text decoder for captions and reports: GPT-2's causal transformer, optionally looking at image tokens.

Pre-LN blocks as in GPT-2 (Radford et al. 2019); with `cross_attention` each block also attends to a context,
as the decoders of VirTex (arXiv 2006.06666) and CoCa (2205.01917) do.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers
from medvlp_jax.types import Array, Outputs


def _variant(width: int, depth: int, heads: int, **options: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width, **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "test": _variant(32, 2, 2, vocab_size=512, max_positions=128, cross_attention=True),
    "quickstart": _variant(192, 3, 4, max_positions=256, cross_attention=True),
    "small": _variant(768, 12, 12),
    "captioner": _variant(512, 6, 8, max_positions=512, cross_attention=True),
}
"""Constructor arguments per variant: "small" is GPT-2 small; "captioner" reads the tokens of an image encoder
of any width."""


def _torch_rules() -> list[tuple[str, str, str]]:
    block, theirs = r"block_(\d+)", r"transformer.h.\1"
    rules = [
        (r"word_embed/embedding", "transformer.wte.weight", "embedding"),
        (r"position_embed/embedding", "transformer.wpe.weight", "embedding"),
        (r"norm/scale", "transformer.ln_f.weight", "copy"),
        (r"norm/bias", "transformer.ln_f.bias", "copy"),
        (r"output/kernel", "lm_head.weight", "linear"),
    ]
    norms = (("norm1", "ln_1"), ("cross_norm", "ln_cross_attn"), ("norm2", "ln_2"))
    for ours, name in norms:
        rules.append((f"{block}/{ours}/scale", f"{theirs}.{name}.weight", "copy"))
        rules.append((f"{block}/{ours}/bias", f"{theirs}.{name}.bias", "copy"))
    linears = [
        ("attention/query", "attn.c_attn", ":0/3"),
        ("attention/key", "attn.c_attn", ":1/3"),
        ("attention/value", "attn.c_attn", ":2/3"),
        ("attention/out", "attn.c_proj", ""),
        ("cross_attention/query", "crossattention.q_attn", ""),
        ("cross_attention/key", "crossattention.c_attn", ":0/2"),
        ("cross_attention/value", "crossattention.c_attn", ":1/2"),
        ("cross_attention/out", "crossattention.c_proj", ""),
        ("mlp/fc1", "mlp.c_fc", ""),
        ("mlp/fc2", "mlp.c_proj", ""),
    ]
    for ours, name, part in linears:
        # GPT-2's weights are [in, out], as our kernels.
        rules.append((f"{block}/{ours}/kernel", f"{theirs}.{name}.weight", f"copy{part}"))
        rules.append((f"{block}/{ours}/bias", f"{theirs}.{name}.bias", f"copy{part}"))
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of `transformers.GPT2LMHeadModel`, in the form explained at `vit.TORCH_RULES`; slices as in
`interop.keys`. OpenAI's files lack the prefix `transformer.`, and old ones also hold the causal masks
`h.<i>.attn.bias` and `h.<i>.attn.masked_bias`, which are no weights."""


class Block(nn.Module):
    """x + f(LN(x)) for causal self-attention, cross-attention if asked for, and feed-forward."""

    heads: int
    mlp_dim: int
    eps: float
    activation: str
    dropout: float
    attention_dropout: float
    cross_attention: bool
    kernel_init: layers.Initializer
    implementation: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        train: bool = False,
        need_probs: bool = False,
        context: Array | None = None,
        context_mask: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Maps x [B, L, D] to ([B, L, D], probabilities or None).

        Args:
            mask: [B, 1, L, L] of `layers.causal_mask`; context: [B, S, Dc] and context_mask: [B, S].
            need_probs: also return the probabilities of the cross-attention [B, heads, L, S], or without it
                those of the self-attention [B, heads, L, L].
        """
        y = layers.LayerNorm(self.eps, self.dtype, name="norm1")(x)
        own = need_probs and not self.cross_attention
        y, probs = self._attention("attention")(y, None, mask, train=train, need_probs=own)
        x = x + self._drop(y, train)
        if self.cross_attention:
            y = layers.LayerNorm(self.eps, self.dtype, name="cross_norm")(x)
            attend = self._attention("cross_attention")
            y, probs = attend(y, context, context_mask, train=train, need_probs=need_probs)
            x = x + self._drop(y, train)
        y = layers.LayerNorm(self.eps, self.dtype, name="norm2")(x)
        y = layers.Mlp(self.mlp_dim, self.activation, self.kernel_init, self.dtype, name="mlp")(y)
        return x + self._drop(y, train), probs

    def _attention(self, name: str) -> layers.MultiHeadAttention:
        return layers.MultiHeadAttention(
            self.heads,
            dropout=self.attention_dropout,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name=name,
        )

    def _drop(self, y: Array, train: bool) -> Array:
        if train and self.dropout > 0.0:
            return layers.dropout(y, self.dropout, self.make_rng("dropout"))
        return y


class Decoder(nn.Module):
    """Causal language model over text tokens. Sizes come from `VARIANTS`.

    Fields:
        width, depth, heads, mlp_dim, vocab_size, max_positions: sizes.
        cross_attention: every block also attends to `context`, which must then be given.
        tied: the output layer is the word embedding table (GPT-2); otherwise a linear layer without bias.
        activation: "gelu_tanh" is GPT-2's.
        dropout, attention_dropout: rates, 0.1 as published; attention_dropout None = the same as dropout.
        init_std: standard deviation of the initial weights at width 768; narrower decoders get it scaled by
            sqrt(768 / width), as in `bert.Encoder`.
        last_attention: also return the attention of the last block.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`; with attention_dropout it is einsum in training.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 50257
    max_positions: int = 1024
    cross_attention: bool = False
    tied: bool = True
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-5
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
        context: Array | None = None,
        context_mask: Array | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """Predicts each next token from the ones before it and, with `cross_attention`, from the context.

        Args:
            input_ids: [B, L] int32; attention_mask: [B, L], nonzero for real tokens, padding last.
            context: [B, S, Dc], e.g. image tokens; context_mask: [B, S], nonzero where the context may be
                seen, None = everywhere.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            logits [B, L, V] in the compute dtype: position i scores the token at i + 1; tokens [B, L, D]
            after the final norm; hidden: tuple of depth + 1 arrays [B, L, D], the embeddings, then each
            block's output (before the final norm); attention of the last block if `last_attention`:
            [B, heads, L, S] over the context, or [B, heads, L, L] without cross-attention. Values at padding
            positions are finite and meaningless.

        Raises:
            UserError: a text longer than the position table; a context without `cross_attention`, or
                `cross_attention` without a context.
        """
        self._check(input_ids, context)
        init = nn.initializers.normal(self.init_std)
        words = nn.Embed(self.vocab_size, self.width, embedding_init=init, name="word_embed")
        places = nn.Embed(
            self.max_positions, self.width, embedding_init=init, name="position_embed"
        )
        x = words(input_ids) + places(jnp.arange(input_ids.shape[1])[None])
        x = x.astype(self.dtype)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        mask = layers.causal_mask(attention_mask)
        hidden, probs = self._blocks(x, mask, context, context_mask, train)
        tokens = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1])
        outputs: Outputs = {"tokens": tokens, "hidden": tuple(hidden)}
        if self.tied:
            outputs["logits"] = jnp.dot(tokens, words.embedding.T.astype(self.dtype))
        else:
            outputs["logits"] = layers.Dense(
                self.vocab_size, False, self._kernel_init(), self.dtype, name="output"
            )(tokens)
        if self.last_attention:
            outputs["attention"] = probs
        return outputs

    def _check(self, input_ids: Array, context: Array | None) -> None:
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise UserError(
                f"text of {length} tokens is longer than the {self.max_positions} positions of the text "
                f"decoder; set the text length (max_length) to at most {self.max_positions} or raise "
                "max_positions"
            )
        if self.cross_attention and context is None:
            raise UserError(
                "this decoder has cross_attention=True and needs a context, e.g. the image tokens; pass it "
                "or set cross_attention=False"
            )
        if not self.cross_attention and context is not None:
            raise UserError(
                "a context is given, but this decoder cannot look at it; set cross_attention=True"
            )

    def _kernel_init(self) -> layers.Initializer:
        return nn.initializers.normal(self.init_std * (768 / self.width) ** 0.5)

    def _blocks(
        self,
        x: Array,
        mask: Array,
        context: Array | None,
        context_mask: Array | None,
        train: bool,
    ) -> tuple[list[Array], Array | None]:
        return layers.block_stack(
            Block,
            self.depth,
            x,
            mask,
            context,
            context_mask,
            train=train,
            last_attention=self.last_attention,
            remat=self.remat,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            eps=self.layer_norm_eps,
            activation=self.activation,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            cross_attention=self.cross_attention,
            kernel_init=self._kernel_init(),
            implementation=self.attention,
            dtype=self.dtype,
        )
