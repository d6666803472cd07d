"""Heads on top of the towers: projections to the shared space and the heads of the pretraining objectives.

Every projection maps [..., D] and takes `train`, so that a config can swap one for another.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, vit
from medvlp_jax.types import Array


class LinearProjection(nn.Module):
    """One linear layer to `features` (CLIP and GLoRIA: without bias)."""

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps [..., D] to [..., features]; `train` changes nothing."""
        del train
        return layers.Dense(self.features, use_bias=self.use_bias, dtype=self.dtype, name="fc")(x)


class Identity(nn.Module):
    """Hands on what it gets: tokens that need no projection (GLoRIA's words)."""

    dtype: Any = jnp.float32

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns x [..., D]; `train` changes nothing."""
        del train
        return x


class MLPProjection(nn.Module):
    """Linear, ReLU, linear: the projection of ConVIRT (arXiv 2010.00747, section 3.2).

    `hidden=None` takes the input width for the hidden layer.
    """

    features: int
    hidden: int | None = None
    activation: str = "relu"
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps [..., D] to [..., features]; `train` changes nothing."""
        del train
        hidden = self.hidden or x.shape[-1]
        x = layers.Dense(hidden, self.use_bias, dtype=self.dtype, name="fc1")(x)
        x = layers.activation(self.activation)(x)
        return layers.Dense(self.features, self.use_bias, dtype=self.dtype, name="fc2")(x)


class BatchNormProjection(nn.Module):
    """Linear, BatchNorm, ReLU, linear, BatchNorm without affine: the projections of MGCA (arXiv 2210.06044).

    On [B, D] it is MGCA's global embedding; on [B, N, D] its local one, with statistics over B and N (so
    padding tokens enter them, as in the released code).
    """

    features: int
    hidden: int = 2048
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps [..., D] to [..., features]; `train` uses and updates batch statistics."""
        x = layers.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="norm1")(x, train=train))
        x = layers.Dense(self.features, dtype=self.dtype, name="fc2")(x)
        return layers.BatchNorm(affine=False, dtype=self.dtype, name="norm2")(x, train=train)


class TanhPooler(nn.Module):
    """tanh of a linear layer on the first token (BERT's pooler)."""

    features: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps tokens [B, T, D] to [B, features], features = D unless given."""
        width = self.features or tokens.shape[-1]
        return jnp.tanh(layers.Dense(width, dtype=self.dtype, name="dense")(tokens[:, 0]))


class MlmHead(nn.Module):
    """BERT's masked-language head (arXiv 1810.04805): linear, GELU, LayerNorm, decoder with bias.

    The decoder has its own kernel, or is tied when the word embedding table is passed.
    """

    vocab_size: int
    layer_norm_eps: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, embedding: Array | None = None) -> Array:
        """Logits [..., V] of tokens [..., D], in the compute dtype; embedding [V, D] ties the decoder."""
        init = nn.initializers.normal(0.02)
        x = layers.Dense(tokens.shape[-1], dtype=self.dtype, kernel_init=init, name="transform")(
            tokens
        )
        x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(layers.gelu(x))
        if embedding is None:
            return layers.Dense(
                self.vocab_size, dtype=self.dtype, kernel_init=init, name="decoder"
            )(x)
        if embedding.shape != (self.vocab_size, tokens.shape[-1]):
            raise UserError(
                f"tied decoder: the word embedding table is {embedding.shape}, but the head needs "
                f"({self.vocab_size}, {tokens.shape[-1]}); untie it or match vocab_size and width"
            )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.vocab_size,), jnp.float32)
        return jnp.dot(x, embedding.T.astype(self.dtype)) + bias.astype(self.dtype)


class ItmHead(nn.Module):
    """Image-text matching: logits [B, 2] of a fused vector [B, D]; class 1 = the pair matches."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        """Maps [B, D] to float32 logits [B, 2]."""
        init = nn.initializers.normal(0.02)  # as the MLM head: both classes start near 1/2
        logits = layers.Dense(2, dtype=self.dtype, kernel_init=init, name="fc")(pooled)
        return logits.astype(jnp.float32)


class MaskedImageDecoder(nn.Module):
    """Decoder of MAE (arXiv 2111.06377, section 3): mask tokens, fixed positions, a few ViT blocks, pixels.

    The defaults (width 384, 4 blocks, 6 heads) are those of M3AE (arXiv 2209.07098), which runs it on the
    image stream of the fusion encoder and uses CLIP blocks (`activation="quick_gelu"`,
    `layer_norm_eps=1e-5`).

    Fields:
        patch_size: side of a predicted patch in pixels (twice the encoder's for the super-resolution of MRM);
            channels: of the predicted image.
        width, depth, heads, mlp_ratio: sizes of the decoder.
        class_token: whether the first input token is a class token.
        grid: rows and columns of the patch grid, None = square.
    """

    patch_size: int
    channels: int = 3
    width: int = 384
    depth: int = 4
    heads: int = 6
    mlp_ratio: int = 4
    class_token: bool = True
    grid: tuple[int, int] | None = None
    activation: str = "gelu"
    layer_norm_eps: float = 1e-6
    remat: layers.Remat = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, restore_ids: Array, *, train: bool = False) -> Array:
        """Predicts every patch from the visible ones.

        Args:
            tokens: [B, (1 +) Nk, D] encoder states of the visible patches, in the order of `image_keep_ids`.
            restore_ids: [B, N] int32, `image_restore_ids`: for each patch its place in the order visible
                first, then removed.

        Returns:
            [B, N, P*P*C] in the compute dtype, each patch flattened as (row, column, C).
        """
        batch, count = restore_ids.shape
        x = layers.Dense(self.width, dtype=self.dtype, name="embed")(tokens)
        first = int(self.class_token)
        missing = count - (x.shape[1] - first)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        fill = jnp.broadcast_to(mask_token.astype(self.dtype), (batch, missing, self.width))
        patches = jnp.concatenate([x[:, first:], fill], axis=1)
        patches = jnp.take_along_axis(patches, restore_ids[..., None], axis=1)
        x = jnp.concatenate([x[:, :first], patches], axis=1)
        table = vit.sincos_2d(self.width, self._grid(count), cls=self.class_token)
        x = x + jnp.asarray(table[None], self.dtype)
        hidden, _ = layers.block_stack(
            layers.PreNormBlock,
            self.depth,
            x,
            None,
            train=train,
            remat=self.remat,
            heads=self.heads,
            mlp_dim=self.mlp_ratio * self.width,
            eps=self.layer_norm_eps,
            activation=self.activation,
            implementation=self.attention,
            dtype=self.dtype,
        )
        x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1][:, first:])
        # Small, as the MLM decoder: the first loss is then near 1, the variance of a normalised patch.
        init = nn.initializers.normal(0.02)
        size = self.patch_size**2 * self.channels
        return layers.Dense(size, dtype=self.dtype, kernel_init=init, name="pixels")(x)

    def _grid(self, count: int) -> tuple[int, int]:
        side = round(count**0.5)
        grid = (side, side) if self.grid is None else self.grid
        if grid[0] * grid[1] != count:
            raise UserError(
                f"{count} patches do not fill a grid of {grid[0]}x{grid[1]}; set the decoder's grid to the "
                "rows and columns of the image's patches"
            )
        return grid
