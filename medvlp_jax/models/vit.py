"""Vision Transformer (arXiv 2010.11929) with the options of MAE (2111.06377), CLIP (2103.00020), DINOv2
(2304.07193, registers 2309.16588) and SigLIP (2303.15343)."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, pooling
from medvlp_jax.types import Array, Outputs


def _variant(width: int, depth: int, heads: int, patch: int, **options: Any) -> dict[str, Any]:
    sizes = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": 4 * width,
        "patch_size": patch,
    }
    return {**sizes, **options}


_CLIP = {
    "pre_layernorm": True,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_bias": False,
}
_SIGLIP = {"class_token": False, "pooling": "map", "activation": "gelu_tanh"}

VARIANTS: dict[str, dict[str, Any]] = {
    "test/8": _variant(32, 2, 2, 8),
    "test/16": _variant(32, 2, 2, 16),
    "quickstart/8": _variant(128, 6, 4, 8),
    "quickstart/16": _variant(128, 6, 4, 16),
    "Ti/16": _variant(192, 12, 3, 16),
    "S/8": _variant(384, 12, 6, 8),
    "S/14": _variant(384, 12, 6, 14),
    "S/16": _variant(384, 12, 6, 16),
    "S/32": _variant(384, 12, 6, 32),
    "B/8": _variant(768, 12, 12, 8),
    "B/14": _variant(768, 12, 12, 14),
    "B/16": _variant(768, 12, 12, 16),
    "B/32": _variant(768, 12, 12, 32),
    "L/14": _variant(1024, 24, 16, 14),
    "L/16": _variant(1024, 24, 16, 16),
    "L/32": _variant(1024, 24, 16, 32),
    "H/14": _variant(1280, 32, 16, 14),
    "clip-B/16": _variant(768, 12, 12, 16, **_CLIP),
    "clip-B/32": _variant(768, 12, 12, 32, **_CLIP),
    "clip-L/14": _variant(1024, 24, 16, 14, **_CLIP),
    **{
        f"dinov2-{size}/14{name}": _variant(*sizes, 14, layer_scale=1.0, registers=registers)
        for size, sizes in {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}.items()
        for name, registers in (("", 0), ("-reg", 4))
    },
    "siglip-B/16": _variant(768, 12, 12, 16, **_SIGLIP),
    "siglip-L/16": _variant(1024, 24, 16, 16, **_SIGLIP),
    "siglip-So400m/14": {**_variant(1152, 27, 16, 14, **_SIGLIP), "mlp_dim": 4304},
}
"""Constructor arguments per variant: ViT and DeiT (Ti, S) sizes; `clip-*` are the towers of OpenAI's CLIP,
`dinov2-*` those of DINOv2 without and with registers, `siglip-*` those of SigLIP (So400m for 384 px cuts off
the 6 pixels that fill no patch: give it 378)."""

TORCH_RULES: list[tuple[str, str, str]] = [
    (r"cls_token", "embeddings.cls_token", "copy"),
    (r"position_embed", "embeddings.position_embeddings", "copy"),
    (r"patch_embed/kernel", "embeddings.patch_embeddings.projection.weight", "conv"),
    (r"patch_embed/bias", "embeddings.patch_embeddings.projection.bias", "copy"),
    (
        r"block_(\d+)/attention/(query|key|value)/kernel",
        r"encoder.layer.\1.attention.attention.\2.weight",
        "linear",
    ),
    (
        r"block_(\d+)/attention/(query|key|value)/bias",
        r"encoder.layer.\1.attention.attention.\2.bias",
        "copy",
    ),
    (
        r"block_(\d+)/attention/out/kernel",
        r"encoder.layer.\1.attention.output.dense.weight",
        "linear",
    ),
    (r"block_(\d+)/attention/out/bias", r"encoder.layer.\1.attention.output.dense.bias", "copy"),
    (r"block_(\d+)/norm1/scale", r"encoder.layer.\1.layernorm_before.weight", "copy"),
    (r"block_(\d+)/norm1/bias", r"encoder.layer.\1.layernorm_before.bias", "copy"),
    (r"block_(\d+)/norm2/scale", r"encoder.layer.\1.layernorm_after.weight", "copy"),
    (r"block_(\d+)/norm2/bias", r"encoder.layer.\1.layernorm_after.bias", "copy"),
    (r"block_(\d+)/mlp/fc1/kernel", r"encoder.layer.\1.intermediate.dense.weight", "linear"),
    (r"block_(\d+)/mlp/fc1/bias", r"encoder.layer.\1.intermediate.dense.bias", "copy"),
    (r"block_(\d+)/mlp/fc2/kernel", r"encoder.layer.\1.output.dense.weight", "linear"),
    (r"block_(\d+)/mlp/fc2/bias", r"encoder.layer.\1.output.dense.bias", "copy"),
    (r"norm/scale", "layernorm.weight", "copy"),
    (r"norm/bias", "layernorm.bias", "copy"),
    (r"pooler/kernel", "pooler.dense.weight", "linear"),
    (r"pooler/bias", "pooler.dense.bias", "copy"),
]
"""Names of `transformers.ViTModel` as its checkpoint files spell them (without the `vit.` prefix).

(regex on the slash path of our parameter, key template, transform); exactly one rule matches the
whole path. Transforms: "copy" and "embedding" same array; "linear" kernel [in, out] <-> weight
[out, in]; "conv" kernel HWIO <-> weight OIHW; "leading" our array has leading axes of length 1 that PyTorch's
lacks.
"""


def fused_attention(
    weight: str, bias: str, attention: str = r"block_(\d+)/attention"
) -> list[tuple[str, str, str]]:
    """Rules of query, key and value that PyTorch keeps in one tensor."""
    rules = []
    for i, name in enumerate(("query", "key", "value")):
        path = f"{attention}/{name}"
        rules.append((f"{path}/kernel", weight, f"linear:{i}/3"))
        rules.append((f"{path}/bias", bias, f"copy:{i}/3"))
    return rules


CLIP_BLOCK_RULES: list[tuple[str, str, str]] = [
    (r"block_(\d+)/attention/query/kernel", r"encoder.layers.\1.self_attn.q_proj.weight", "linear"),
    (r"block_(\d+)/attention/query/bias", r"encoder.layers.\1.self_attn.q_proj.bias", "copy"),
    (r"block_(\d+)/attention/key/kernel", r"encoder.layers.\1.self_attn.k_proj.weight", "linear"),
    (r"block_(\d+)/attention/key/bias", r"encoder.layers.\1.self_attn.k_proj.bias", "copy"),
    (r"block_(\d+)/attention/value/kernel", r"encoder.layers.\1.self_attn.v_proj.weight", "linear"),
    (r"block_(\d+)/attention/value/bias", r"encoder.layers.\1.self_attn.v_proj.bias", "copy"),
    (r"block_(\d+)/attention/out/kernel", r"encoder.layers.\1.self_attn.out_proj.weight", "linear"),
    (r"block_(\d+)/attention/out/bias", r"encoder.layers.\1.self_attn.out_proj.bias", "copy"),
    (r"block_(\d+)/norm(1|2)/scale", r"encoder.layers.\1.layer_norm\2.weight", "copy"),
    (r"block_(\d+)/norm(1|2)/bias", r"encoder.layers.\1.layer_norm\2.bias", "copy"),
    (r"block_(\d+)/mlp/fc(1|2)/kernel", r"encoder.layers.\1.mlp.fc\2.weight", "linear"),
    (r"block_(\d+)/mlp/fc(1|2)/bias", r"encoder.layers.\1.mlp.fc\2.bias", "copy"),
]
"""Blocks of the image and text towers of transformers' CLIP and SigLIP, in that form."""

CLIP_TORCH_RULES: list[tuple[str, str, str]] = [
    (r"cls_token", "embeddings.class_embedding", "leading"),
    (r"position_embed", "embeddings.position_embedding.weight", "leading"),
    (r"patch_embed/kernel", "embeddings.patch_embedding.weight", "conv"),
    (r"pre_norm/scale", "pre_layrnorm.weight", "copy"),  # the misspelling is in the checkpoints
    (r"pre_norm/bias", "pre_layrnorm.bias", "copy"),
    *CLIP_BLOCK_RULES,
    (r"norm/scale", "post_layernorm.weight", "copy"),
    (r"norm/bias", "post_layernorm.bias", "copy"),
]
"""Names of `transformers.CLIPVisionModel` (without the `vision_model.` prefix), in that form."""


def _map_rules(head: str, projection: str, norm: str) -> list[tuple[str, str, str]]:
    """Rules of SigLIP's pooling head except query, key and value."""
    pool = "attention_pool"
    return [
        (f"{pool}/attention/out/kernel", f"{head}.{projection}.weight", "linear"),
        (f"{pool}/attention/out/bias", f"{head}.{projection}.bias", "copy"),
        (f"{pool}/norm/scale", f"{head}.{norm}.weight", "copy"),
        (f"{pool}/norm/bias", f"{head}.{norm}.bias", "copy"),
        (rf"{pool}/mlp/fc(1|2)/kernel", rf"{head}.mlp.fc\1.weight", "linear"),
        (rf"{pool}/mlp/fc(1|2)/bias", rf"{head}.mlp.fc\1.bias", "copy"),
    ]


SIGLIP_TORCH_RULES: list[tuple[str, str, str]] = [
    *(rule for rule in CLIP_TORCH_RULES if not rule[0].startswith(("cls_token", "pre_norm"))),
    (r"patch_embed/bias", "embeddings.patch_embedding.bias", "copy"),
    (r"attention_pool/probe", "head.probe", "copy"),
    *fused_attention(
        "head.attention.in_proj_weight", "head.attention.in_proj_bias", "attention_pool/attention"
    ),
    *_map_rules("head", "attention.out_proj", "layernorm"),
]
"""Names of `transformers.SiglipVisionModel` (without the `vision_model.` prefix), in that form."""

_TIMM_BLOCK = r"blocks.\1"
TIMM_RULES: list[tuple[str, str, str]] = [
    (r"cls_token", "cls_token", "copy"),
    (r"register_tokens", "register_tokens", "copy"),
    (r"position_embed", "pos_embed", "copy"),
    (r"pre_norm/scale", "norm_pre.weight", "copy"),
    (r"pre_norm/bias", "norm_pre.bias", "copy"),
    (r"patch_embed/kernel", "patch_embed.proj.weight", "conv"),
    (r"patch_embed/bias", "patch_embed.proj.bias", "copy"),
    *fused_attention(rf"{_TIMM_BLOCK}.attn.qkv.weight", rf"{_TIMM_BLOCK}.attn.qkv.bias"),
    (r"block_(\d+)/attention/out/kernel", rf"{_TIMM_BLOCK}.attn.proj.weight", "linear"),
    (r"block_(\d+)/attention/out/bias", rf"{_TIMM_BLOCK}.attn.proj.bias", "copy"),
    (r"block_(\d+)/norm(1|2)/scale", rf"{_TIMM_BLOCK}.norm\2.weight", "copy"),
    (r"block_(\d+)/norm(1|2)/bias", rf"{_TIMM_BLOCK}.norm\2.bias", "copy"),
    (r"block_(\d+)/mlp/fc(1|2)/kernel", rf"{_TIMM_BLOCK}.mlp.fc\2.weight", "linear"),
    (r"block_(\d+)/mlp/fc(1|2)/bias", rf"{_TIMM_BLOCK}.mlp.fc\2.bias", "copy"),
    (r"block_(\d+)/layer_scale(1|2)", rf"{_TIMM_BLOCK}.ls\2.gamma", "copy"),
    (r"norm/scale", "norm.weight", "copy"),
    (r"norm/bias", "norm.bias", "copy"),
    (r"attention_pool/probe", "attn_pool.latent", "copy"),
    (r"attention_pool/attention/query/kernel", "attn_pool.q.weight", "linear"),
    (r"attention_pool/attention/query/bias", "attn_pool.q.bias", "copy"),
    (r"attention_pool/attention/key/kernel", "attn_pool.kv.weight", "linear:0/2"),
    (r"attention_pool/attention/key/bias", "attn_pool.kv.bias", "copy:0/2"),
    (r"attention_pool/attention/value/kernel", "attn_pool.kv.weight", "linear:1/2"),
    (r"attention_pool/attention/value/bias", "attn_pool.kv.bias", "copy:1/2"),
    *_map_rules("attn_pool", "proj", "norm"),
]
"""Names of timm, DeiT, MAE and DINOv2's own files; "linear:1/3" is one of three parts, see `interop.keys`."""

_DINO_LAYER = r"encoder.layer.\1"
DINOV2_TORCH_RULES: list[tuple[str, str, str]] = [
    *(r for r in TORCH_RULES if not r[0].startswith((r"block_(\d+)/norm", r"block_(\d+)/mlp", "pooler"))),
    (r"register_tokens", "embeddings.register_tokens", "copy"),
    (r"block_(\d+)/norm(1|2)/scale", rf"{_DINO_LAYER}.norm\2.weight", "copy"),
    (r"block_(\d+)/norm(1|2)/bias", rf"{_DINO_LAYER}.norm\2.bias", "copy"),
    (r"block_(\d+)/mlp/fc(1|2)/kernel", rf"{_DINO_LAYER}.mlp.fc\2.weight", "linear"),
    (r"block_(\d+)/mlp/fc(1|2)/bias", rf"{_DINO_LAYER}.mlp.fc\2.bias", "copy"),
    (r"block_(\d+)/layer_scale(1|2)", rf"{_DINO_LAYER}.layer_scale\2.lambda1", "copy"),
]  # fmt: skip
"""Names of `transformers.Dinov2Model` and `Dinov2WithRegistersModel`, in that form."""

_CLIP_BLOCK = r"transformer.resblocks.\1"
OPENAI_BLOCK_RULES: list[tuple[str, str, str]] = [
    *fused_attention(rf"{_CLIP_BLOCK}.attn.in_proj_weight", rf"{_CLIP_BLOCK}.attn.in_proj_bias"),
    (r"block_(\d+)/attention/out/kernel", rf"{_CLIP_BLOCK}.attn.out_proj.weight", "linear"),
    (r"block_(\d+)/attention/out/bias", rf"{_CLIP_BLOCK}.attn.out_proj.bias", "copy"),
    (r"block_(\d+)/norm(1|2)/scale", rf"{_CLIP_BLOCK}.ln_\2.weight", "copy"),
    (r"block_(\d+)/norm(1|2)/bias", rf"{_CLIP_BLOCK}.ln_\2.bias", "copy"),
    (r"block_(\d+)/mlp/fc1/kernel", rf"{_CLIP_BLOCK}.mlp.c_fc.weight", "linear"),
    (r"block_(\d+)/mlp/fc1/bias", rf"{_CLIP_BLOCK}.mlp.c_fc.bias", "copy"),
    (r"block_(\d+)/mlp/fc2/kernel", rf"{_CLIP_BLOCK}.mlp.c_proj.weight", "linear"),
    (r"block_(\d+)/mlp/fc2/bias", rf"{_CLIP_BLOCK}.mlp.c_proj.bias", "copy"),
]
"""Blocks of the image and text towers of OpenAI's CLIP and of open_clip."""

OPENAI_RULES: list[tuple[str, str, str]] = [
    (r"cls_token", "class_embedding", "leading"),
    (r"position_embed", "positional_embedding", "leading"),
    (r"patch_embed/kernel", "conv1.weight", "conv"),
    (r"pre_norm/scale", "ln_pre.weight", "copy"),
    (r"pre_norm/bias", "ln_pre.bias", "copy"),
    *OPENAI_BLOCK_RULES,
    (r"norm/scale", "ln_post.weight", "copy"),
    (r"norm/bias", "ln_post.bias", "copy"),
]
"""Names of OpenAI's CLIP and of open_clip (without the `visual.` prefix)."""

SOURCES: dict[str, list[tuple[str, str, str]]] = {
    "transformers ViT or DeiT": TORCH_RULES,
    "transformers CLIP": CLIP_TORCH_RULES,
    "transformers SigLIP": SIGLIP_TORCH_RULES,
    "transformers DINOv2": DINOV2_TORCH_RULES,
    "timm, MAE or DINOv2": TIMM_RULES,
    "OpenAI CLIP or open_clip": OPENAI_RULES,
}
"""Namings that `interop.pretrained` recognises."""


def sincos_2d(width: int, grid: tuple[int, int], *, cls: bool) -> np.ndarray:
    """Fixed 2-D sine-cosine position table of MAE (arXiv 2111.06377) -> float64 [(1 +) h*w, width].

    The first half of the features encodes the column, the second the row, each as sines then cosines of
    frequencies 10000^(-2i/(width/2)); rows of the table run over the grid row by row. With `cls` a zero row
    for the class token comes first.
    """
    if width % 4:
        raise UserError(f"sine-cosine positions need a width divisible by 4, not {width}")
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    halves = []
    for coordinate in (columns, rows):
        angle = coordinate.reshape(-1, 1) * omega
        halves += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, width)), table]) if cls else table


def resample_positions(table: Array, grid: tuple[int, int], *, cls: bool) -> jax.Array:
    """Bicubic resampling of a learned position table to another grid, as PyTorch ports of ViT do it.

    Args:
        table: [1, (1 +) n, D] learned on a square grid of n patches.
        grid: rows and columns of the new grid.
        cls: whether the first entry belongs to the class token, which is kept as it is.

    Returns:
        [1, (1 +) rows*columns, D].
    """
    head, body = (table[:, :1], table[:, 1:]) if cls else (table[:, :0], table)
    side = round(body.shape[1] ** 0.5)
    if side * side != body.shape[1]:
        raise UserError(
            f"a position table of {body.shape[1]} patches is not square: cannot resample"
        )
    image = jnp.asarray(body, jnp.float32).reshape(1, side, side, -1)
    shape = (1, *grid, image.shape[-1])
    image = jax.image.resize(image, shape, jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=True)
    return jnp.concatenate(
        [jnp.asarray(head, jnp.float32), image.reshape(1, -1, shape[-1])], axis=1
    )


def image_patches(image: Array, patch: int) -> jax.Array:
    """Cuts image [B, H, W, C] into [B, N, P*P*C] patches, row by row, each flattened as (row, column, C)."""
    batch, height, width, channels = image.shape
    if height % patch or width % patch:
        raise UserError(
            f"image of {height}x{width} px cannot be cut into patches of {patch} px; "
            f"set the image size to a multiple of {patch}"
        )
    rows, columns = height // patch, width // patch
    x = jnp.reshape(image, (batch, rows, patch, columns, patch, channels))
    return jnp.swapaxes(x, 2, 3).reshape(batch, rows * columns, patch * patch * channels)


class PatchEmbed(nn.Module):
    """Linear embedding of flat patches; kernel [P, P, C, D], that of the equivalent strided convolution."""

    patch_size: int
    width: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        """Maps [B, N, P*P*C] to [B, N, D]."""
        channels = patches.shape[-1] // self.patch_size**2
        shape = (self.patch_size, self.patch_size, channels, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        x = jnp.dot(patches.astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


class Encoder(nn.Module):
    """ViT image encoder. Sizes come from `VARIANTS`; `depth=11` on "clip-B/16" is the tower of M3AE.

    Fields:
        patch_size, width, depth, heads, mlp_dim: sizes, the patch in pixels.
        class_token: whether a class token is prepended.
        pooling: "cls" = class token after the final norm, "pooler" = tanh(dense) of it (transformers'
            ViTModel), "mean" = mean of the patch tokens after the final norm, "map" = `pooling.MapPool` of
            them (SigLIP).
        positions: "learned" table (its length is fixed by the first image seen) or "sincos" (fixed).
        registers: number of register tokens, which come after the class token and have no position; they
            are in `hidden`, not in `tokens`.
        layer_scale: see `layers.PreNormBlock`.
        pre_layernorm: LayerNorm before the first block (CLIP).
        activation: "gelu" (exact), "gelu_tanh" (SigLIP) or "quick_gelu" (OpenAI's CLIP).
        qkv_bias, patch_bias: whether those layers have a bias.
        dropout, attention_dropout, drop_path: rates; attention_dropout None = dropout; drop_path grows
            linearly from 0 over depth.
        last_attention: also return the attention of the last block.
        remat: "none", "full" or "dots"; see `layers.rematerialised`.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters are float32.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    class_token: bool = True
    pooling: Literal["cls", "mean", "pooler", "map"] = "cls"
    positions: Literal["learned", "sincos"] = "learned"
    registers: int = 0
    layer_scale: float = 0.0
    pre_layernorm: bool = False
    activation: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float | None = None
    drop_path: float = 0.0
    last_attention: bool = False
    remat: layers.Remat = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images.

        Args:
            image: [B, H, W, C].
            keep_ids: [B, Nk] int32 patches to encode, in this order; None encodes all. Positions are added
                first, so a kept patch knows where it was; the class token is always kept.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            tokens [B, N or Nk, D] and cls [B, D] (if there is one) after the final norm; pooled [B, D];
            hidden: tuple of depth + 1 arrays [B, T, D], class token and registers first: the embeddings, then
            each block's output (before the final norm); attention [B, heads, T, T] of the last block if
            `last_attention`.

        Raises:
            UserError: image not divisible into patches, not float, or not of the size of the position table.
        """
        x = self._embed(image, keep_ids)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        if self.pre_layernorm:
            x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="pre_norm")(x)
        hidden, probs = self._blocks(x, train)
        x = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(hidden[-1])
        outputs: Outputs = {"hidden": tuple(hidden)}
        if self.class_token:
            outputs["cls"] = x[:, 0]
            x = x[:, 1:]
        x = x[:, self.registers :]
        outputs["tokens"] = x
        outputs["pooled"] = self._pool(x, outputs.get("cls"))
        if self.last_attention:
            outputs["attention"] = probs
        return outputs

    def _embed(self, image: Array, keep_ids: Array | None) -> Array:
        layers.check_normalised(image)
        patches = image_patches(image, self.patch_size)
        table = self._positions(image.shape[1:3], patches.shape[1])
        cls_position, positions = table[:, : -patches.shape[1]], table[:, -patches.shape[1] :]
        if keep_ids is not None:
            # Dropping raw patches before the linear embedding gives the same tokens for less work.
            patches = jnp.take_along_axis(patches, keep_ids[..., None], axis=1)
            positions = jnp.take(positions[0], keep_ids, axis=0)
        embed = PatchEmbed(
            self.patch_size, self.width, self.patch_bias, self.dtype, name="patch_embed"
        )
        x = embed(patches) + positions.astype(self.dtype)
        init = nn.initializers.normal(0.02)
        if self.registers:
            shape = (1, self.registers, self.width)
            registers = self.param("register_tokens", init, shape, jnp.float32).astype(self.dtype)
            registers = jnp.broadcast_to(registers, (x.shape[0], *shape[1:]))
            x = jnp.concatenate([registers, x], axis=1)
        if self.class_token:
            cls = self.param("cls_token", init, (1, 1, self.width), jnp.float32) + cls_position
            cls = jnp.broadcast_to(cls.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        return x

    def _positions(self, size: tuple[int, ...], patches: int) -> Array:
        grid = (size[0] // self.patch_size, size[1] // self.patch_size)
        if self.positions == "sincos":
            table = sincos_2d(self.width, grid, cls=self.class_token)
            return jnp.asarray(table[None], jnp.float32)
        if self.positions != "learned":
            raise UserError(f"positions={self.positions!r} is unknown; choose learned or sincos")
        shape = (1, patches + int(self.class_token), self.width)
        if self.has_variable("params", "position_embed"):
            have = self.get_variable("params", "position_embed").shape
            if have[1] != shape[1]:
                side = round((have[1] - int(self.class_token)) ** 0.5) * self.patch_size
                raise UserError(
                    f"image of {size[0]}x{size[1]} px needs a position table of {shape[1]} entries, but the "
                    f"parameters hold {have[1]} (images of {side}x{side} px); set the image size to {side} "
                    "or resample the table with medvlp_jax.models.vit.resample_positions"
                )
        return self.param("position_embed", nn.initializers.normal(0.02), shape, jnp.float32)

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
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            implementation=self.attention,
            dtype=self.dtype,
        )

    def _pool(self, tokens: Array, cls: Array | None) -> Array:
        if self.pooling == "mean":
            return tokens.astype(jnp.float32).mean(axis=1).astype(tokens.dtype)
        if self.pooling == "map":
            return pooling.MapPool(
                self.heads,
                self.mlp_dim,
                eps=self.layer_norm_eps,
                activation=self.activation,
                implementation=self.attention,
                dtype=self.dtype,
                name="attention_pool",
            )(tokens)
        if cls is None:
            raise UserError(
                f"pooling={self.pooling!r} needs class_token=True; or set pooling='mean'"
            )
        if self.pooling == "cls":
            return cls
        if self.pooling == "pooler":
            return jnp.tanh(layers.Dense(self.width, dtype=self.dtype, name="pooler")(cls))
        raise UserError(f"pooling={self.pooling!r} is unknown; choose cls, mean, pooler or map")
