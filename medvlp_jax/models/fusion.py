"""Co-attention fusion of METER (arXiv 2111.02387) and M3AE (2209.07098): two streams that read each other."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.models.heads import TanhPooler
from medvlp_jax.models.layers import Dense, Implementation, PostNormBlock, Remat, rematerialised
from medvlp_jax.types import Array, Outputs


class CoAttention(nn.Module):
    """`layers` cross layers per stream: self-attention, cross-attention, feed-forward, each post-LN.

    Both streams of a layer read the other stream as it left the previous layer. Each stream is first mapped
    to `width` by a linear layer and marked with a learned modality embedding.

    Fields:
        width, layers, heads, mlp_dim: sizes; those of M3AE by default.
        dropout, attention_dropout: rates; attention_dropout None = the same as dropout.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters are float32.
    """

    width: int = 768
    layers: int = 6
    heads: int = 12
    mlp_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float | None = None
    layer_norm_eps: float = 1e-12
    last_attention: bool = False
    remat: Remat = "none"
    attention: Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image_tokens: Array,
        image_mask: Array | None,
        text_tokens: Array,
        text_mask: Array | None,
        *,
        train: bool = False,
    ) -> Outputs:
        """Fuses the token states of the towers.

        Args:
            image_tokens: [B, N, Di], class token first; text_tokens: [B, L, Dt].
            image_mask, text_mask: [B, N], [B, L], nonzero for real tokens; None = all real.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            fused_image_tokens [B, N, D], fused_text_tokens [B, L, D]; fused_image_layers and
            fused_text_layers, tuples of layers + 1 arrays: entry i is the input of cross layer i, the last
            the output; fused_pooled [B, 2D]: tanh poolers of the first text and the first image token,
            concatenated in this order. With `last_attention` also fused_image_attention
            [B, heads, N, L] and fused_text_attention [B, heads, L, N], the last layer's cross-attention.
        """
        image = self._enter("image", image_tokens)
        text = self._enter("text", text_tokens)
        image_layers, text_layers = [image], [text]
        image_probs = text_probs = None
        for i in range(self.layers):
            last = self.last_attention and i == self.layers - 1
            next_text, text_probs = self._cross_layer(f"text_block_{i}")(
                text, text_mask, train, last, image, image_mask
            )
            image, image_probs = self._cross_layer(f"image_block_{i}")(
                image, image_mask, train, last, text, text_mask
            )
            text = next_text
            image_layers.append(image)
            text_layers.append(text)
        pooled = [
            TanhPooler(dtype=self.dtype, name="text_pooler")(text),
            TanhPooler(dtype=self.dtype, name="image_pooler")(image),
        ]
        outputs: Outputs = {
            "fused_image_tokens": image,
            "fused_text_tokens": text,
            "fused_image_layers": tuple(image_layers),
            "fused_text_layers": tuple(text_layers),
            "fused_pooled": jnp.concatenate(pooled, axis=-1),
        }
        if image_probs is not None and text_probs is not None:
            outputs["fused_image_attention"] = image_probs[1]
            outputs["fused_text_attention"] = text_probs[1]
        return outputs

    def _attention_dropout(self) -> float:
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    def _enter(self, stream: str, tokens: Array) -> Array:
        init = nn.initializers.normal(0.02)
        x = Dense(self.width, dtype=self.dtype, name=f"{stream}_input")(tokens)
        modality = self.param(f"{stream}_modality", init, (self.width,), jnp.float32)
        return x + modality.astype(self.dtype)

    def _cross_layer(self, name: str) -> nn.Module:
        return rematerialised(PostNormBlock, self.remat)(
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            eps=self.layer_norm_eps,
            dropout=self.dropout,
            attention_dropout=self._attention_dropout(),
            cross_attention=True,
            implementation=self.attention,
            dtype=self.dtype,
            name=name,
        )
