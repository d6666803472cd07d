"""Vision Transformer (arXiv 2010.11929) for volumes, and how it starts from one for images.

A volume is cut into boxes instead of squares; from there on nothing differs, so the tower takes over every
layer of a `vit` tower. `inflate` turns the two parameters that do differ, the patch kernel and the position
table, into 3-D ones as I3D (arXiv 1705.07750, section 2.2) and ViViT (2103.15691, section 3.4) do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, vit
from medvlp_jax.types import Array, Outputs


def _variant(
    width: int, depth: int, heads: int, patch: tuple[int, int, int], **options: Any
) -> dict[str, Any]:
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width}
    return {**sizes, "patch_size": patch, **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "test": _variant(32, 2, 2, (4, 8, 8)),
    "S/16": _variant(384, 12, 6, (16, 16, 16)),
    "B/16": _variant(768, 12, 12, (16, 16, 16)),
    "vivit-B/16x2": _variant(768, 12, 12, (2, 16, 16), activation="gelu_tanh"),
}
"""Constructor arguments per variant: ViT sizes with boxes of 16 voxels a side, and ViViT's B/16x2 (its
model 1) with tubelets of 2 frames."""

TORCH_RULES: list[tuple[str, str, str]] = [
    rule for rule in vit.TORCH_RULES if not rule[0].startswith("pooler")
]
"""Names of `transformers.VivitModel` (without the `vivit.` prefix), in the form explained at
`vit.TORCH_RULES`."""


def volume_patches(volume: Array, patch: tuple[int, int, int]) -> jax.Array:
    """Cuts volume [B,D,H,W,C] into [B,N,p*q*r*C] boxes, slab by slab, then row by row.

    Args:
        patch: p, q, r, the size of a box along depth, height and width.
    """
    batch, *size, channels = volume.shape
    if any(n % p for n, p in zip(size, patch, strict=True)):
        raise UserError(
            f"volume of {'x'.join(map(str, size))} voxels cannot be cut into boxes of "
            f"{'x'.join(map(str, patch))}; make each side a multiple"
        )
    grid = [n // p for n, p in zip(size, patch, strict=True)]
    split = [n for pair in zip(grid, patch, strict=True) for n in pair]
    x = jnp.reshape(volume, (batch, *split, channels))
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(
        batch, int(np.prod(grid)), int(np.prod(patch)) * channels
    )


class PatchEmbed(nn.Module):
    """Linear embedding of flat boxes; kernel [p,q,r,C,D], that of the equivalent strided convolution."""

    patch_size: tuple[int, int, int]
    width: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        """Maps [B,N,p*q*r*C] to [B,N,D]."""
        channels = patches.shape[-1] // int(np.prod(self.patch_size))
        shape = (*self.patch_size, channels, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        x = jnp.dot(patches.astype(self.dtype), kernel.reshape(-1, self.width).astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


class Encoder(nn.Module):
    """ViT encoder of volumes. Sizes come from `VARIANTS`; parameters are named as in `vit.Encoder`.

    Fields:
        patch_size: box along depth, height and width, in voxels.
        width, depth, heads, mlp_dim: sizes.
        class_token: whether a class token is prepended.
        pooling: "cls" = class token after the final norm, "mean" = mean of the box tokens after it.
        pre_layernorm, layer_scale, activation, layer_norm_eps, qkv_bias, patch_bias: see `vit.Encoder`; those
            of the 2-D tower whose weights are inflated.
        dropout, drop_path: rates; drop_path grows linearly from 0 over depth.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters are float32.
    """

    patch_size: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    mlp_dim: int
    class_token: bool = True
    pooling: Literal["cls", "mean"] = "cls"
    pre_layernorm: bool = False
    layer_scale: float = 0.0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: layers.Remat = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float volumes.

        Args:
            image: [B,D,H,W,C].
            keep_ids: [B,Nk] int32 boxes to encode, in this order; None encodes all.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            tokens [B,N or Nk,D] and cls [B,D] (if there is one) after the final norm; pooled [B,D]; hidden:
            tuple of depth + 1 arrays [B,T,D], class token first: the embeddings, then each block's output.

        Raises:
            UserError: not a volume, not float, not divisible into boxes, or not of the size of the position
                table.
        """
        x = self._embed(image, keep_ids)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        if self.pre_layernorm:
            x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="pre_norm")(x)
        hidden = self._blocks(x, train)
        x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1])
        outputs: Outputs = {"hidden": tuple(hidden)}
        if self.class_token:
            outputs["cls"], x = x[:, 0], x[:, 1:]
        outputs["tokens"] = x
        outputs["pooled"] = self._pool(x, outputs.get("cls"))
        return outputs

    def _embed(self, image: Array, keep_ids: Array | None) -> Array:
        if image.ndim != 5:
            raise UserError(f"vit3d wants volumes [B,D,H,W,C], not an array of shape {image.shape}")
        layers.check_normalised(image)
        patches = volume_patches(image, self.patch_size)
        count = patches.shape[1]
        table = self._positions(count)
        positions = table[:, -count:]
        if keep_ids is not None:
            patches = jnp.take_along_axis(patches, keep_ids[..., None], axis=1)
            positions = jnp.take(positions[0], keep_ids, axis=0)
        embed = PatchEmbed(
            self.patch_size, self.width, self.patch_bias, self.dtype, name="patch_embed"
        )
        x = embed(patches) + positions.astype(self.dtype)
        if self.class_token:
            init = nn.initializers.normal(0.02)
            cls = self.param("cls_token", init, (1, 1, self.width), jnp.float32) + table[:, :-count]
            cls = jnp.broadcast_to(cls.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        return x

    def _positions(self, count: int) -> Array:
        shape = (1, count + int(self.class_token), self.width)
        if self.has_variable("params", "position_embed"):
            have = self.get_variable("params", "position_embed").shape[1]
            if have != shape[1]:
                raise UserError(
                    f"this volume needs a position table of {shape[1]} entries, but the parameters hold "
                    f"{have}; use volumes of the size of training"
                )
        return self.param("position_embed", nn.initializers.normal(0.02), shape, jnp.float32)

    def _blocks(self, x: Array, train: bool) -> list[Array]:
        hidden, _ = layers.block_stack(
            layers.PreNormBlock,
            self.depth,
            x,
            None,
            train=train,
            remat=self.remat,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            eps=self.layer_norm_eps,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
            drop_path=self.drop_path,
            implementation=self.attention,
            dtype=self.dtype,
        )
        return hidden

    def _pool(self, tokens: Array, cls: Array | None) -> Array:
        if self.pooling == "mean":
            return tokens.astype(jnp.float32).mean(axis=1).astype(tokens.dtype)
        if self.pooling != "cls":
            raise UserError(f"pooling={self.pooling!r} is unknown; choose cls or mean")
        if cls is None:
            raise UserError("pooling='cls' needs class_token=True; or set pooling='mean'")
        return cls


def inflate(
    params: Mapping[str, Any],
    *,
    patch_depth: int,
    slabs: int,
    kernel: Literal["mean", "centre"] = "mean",
    class_token: bool = True,
) -> dict[str, Any]:
    """Parameters of an `Encoder` from those of a `vit.Encoder` of the same sizes.

    A volume whose slices are all the same then gives each slab the embeddings of that slice. The whole tower
    gives the slice's tokens too with one slab, or without class token: with one, each patch comes `slabs`
    times before the attention and the class token once.

    Args:
        params: of the 2-D tower, without registers and pooler: e.g. from `interop.pretrained.load`.
        patch_depth: p, the depth of a box.
        slabs: boxes along the depth of the volume, D / p.
        kernel: "mean" = the 2-D kernel divided by p in every slice (I3D); "centre" = the 2-D kernel in the
            middle slice p // 2 and zeros elsewhere (ViViT's central frame).
        class_token: whether the position table begins with that of a class token.

    Returns:
        The patch kernel as [p,P,P,C,D]; the position table as [1,(1 +) slabs*n,D], the same for each slab;
        all other arrays as they are.

    Raises:
        UserError: parameters that a volume's tower does not have, or an unknown `kernel`.
    """
    foreign = [name for name in ("register_tokens", "pooler", "attention_pool") if name in params]
    if foreign:
        raise UserError(f"vit3d has no {foreign[0]}; inflate a ViT without it")
    flat = np.asarray(params["patch_embed"]["kernel"])
    if kernel == "mean":
        deep = np.repeat(flat[None] / patch_depth, patch_depth, axis=0)
    elif kernel == "centre":
        deep = np.zeros((patch_depth, *flat.shape), flat.dtype)
        deep[patch_depth // 2] = flat
    else:
        raise UserError(f"kernel={kernel!r} is unknown; choose mean or centre")
    inflated = {**params, "patch_embed": {**params["patch_embed"], "kernel": deep}}
    if "position_embed" in params:
        table = np.asarray(params["position_embed"])
        first = int(class_token)
        head, body = table[:, :first], table[:, first:]
        inflated["position_embed"] = np.concatenate([head, np.tile(body, (1, slabs, 1))], axis=1)
    else:
        raise UserError("the ViT has no learned position table; train it with positions='learned'")
    return inflated
