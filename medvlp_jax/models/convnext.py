"""ConvNeXt image encoder (arXiv 2201.03545), equal to `transformers.ConvNextModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, vit
from medvlp_jax.types import Array, Outputs

_BATCH_NORM = "_bn"  # ending of the names of BatchNorms
_WINDOW = 7  # side of the depthwise convolution

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"hidden_sizes": (16, 32), "depths": (1, 1), "patch_size": 8, "layer_scale": 1.0},
    "quickstart": {
        "hidden_sizes": (48, 96, 192),
        "depths": (1, 2, 1),
        "patch_size": 8,
        "layer_scale": 1.0,
        "batch_norm": True,
    },
    "T": {"hidden_sizes": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
    "S": {"hidden_sizes": (96, 192, 384, 768), "depths": (3, 3, 27, 3)},
    "B": {"hidden_sizes": (128, 256, 512, 1024), "depths": (3, 3, 27, 3)},
    "L": {"hidden_sizes": (192, 384, 768, 1536), "depths": (3, 3, 27, 3)},
}
"""Constructor arguments per variant: T to L as published; the others are small ones for a CPU."""

_BLOCK = r"encoder.stages.\1.layers.\2"
TORCH_RULES: list[tuple[str, str, str]] = [
    (r"stem/kernel", "embeddings.patch_embeddings.weight", "conv"),
    (r"stem/bias", "embeddings.patch_embeddings.bias", "copy"),
    (r"stem_norm/scale", "embeddings.layernorm.weight", "copy"),
    (r"stem_norm/bias", "embeddings.layernorm.bias", "copy"),
    (r"down_(\d)_norm/scale", r"encoder.stages.\1.downsampling_layer.0.weight", "copy"),
    (r"down_(\d)_norm/bias", r"encoder.stages.\1.downsampling_layer.0.bias", "copy"),
    (r"down_(\d)/kernel", r"encoder.stages.\1.downsampling_layer.1.weight", "conv"),
    (r"down_(\d)/bias", r"encoder.stages.\1.downsampling_layer.1.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/depthwise/kernel", rf"{_BLOCK}.dwconv.weight", "conv"),
    (r"stage_(\d)_block_(\d+)/depthwise/bias", rf"{_BLOCK}.dwconv.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/norm/scale", rf"{_BLOCK}.layernorm.weight", "copy"),
    (r"stage_(\d)_block_(\d+)/norm/bias", rf"{_BLOCK}.layernorm.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/fc(1|2)/kernel", rf"{_BLOCK}.pwconv\3.weight", "linear"),
    (r"stage_(\d)_block_(\d+)/fc(1|2)/bias", rf"{_BLOCK}.pwconv\3.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/layer_scale", rf"{_BLOCK}.layer_scale_parameter", "copy"),
    (r"norm/scale", "layernorm.weight", "copy"),
    (r"norm/bias", "layernorm.bias", "copy"),
]
"""Names of `transformers.ConvNextModel`, in the form explained at `vit.TORCH_RULES`."""


def _original_rules(
    *, stem: str, down: str, block: str, depthwise: str, mlp: str, norm: str
) -> list[tuple[str, str, str]]:
    """Names of the released code and of timm, which differ in these places."""
    ours = r"stage_(\d)_block_(\d+)"
    return [
        (r"stem/kernel", f"{stem}.0.weight", "conv"),
        (r"stem/bias", f"{stem}.0.bias", "copy"),
        (r"stem_norm/scale", f"{stem}.1.weight", "copy"),
        (r"stem_norm/bias", f"{stem}.1.bias", "copy"),
        (r"down_(\d)_norm/scale", f"{down}.0.weight", "copy"),
        (r"down_(\d)_norm/bias", f"{down}.0.bias", "copy"),
        (r"down_(\d)/kernel", f"{down}.1.weight", "conv"),
        (r"down_(\d)/bias", f"{down}.1.bias", "copy"),
        (f"{ours}/depthwise/kernel", f"{block}.{depthwise}.weight", "conv"),
        (f"{ours}/depthwise/bias", f"{block}.{depthwise}.bias", "copy"),
        (f"{ours}/norm/scale", f"{block}.norm.weight", "copy"),
        (f"{ours}/norm/bias", f"{block}.norm.bias", "copy"),
        (f"{ours}/fc(1|2)/kernel", f"{block}.{mlp}\\3.weight", "linear"),
        (f"{ours}/fc(1|2)/bias", f"{block}.{mlp}\\3.bias", "copy"),
        (f"{ours}/layer_scale", f"{block}.gamma", "copy"),
        (r"norm/scale", f"{norm}.weight", "copy"),
        (r"norm/bias", f"{norm}.bias", "copy"),
    ]


ORIGINAL_RULES: list[tuple[str, str, str]] = _original_rules(
    stem="downsample_layers.0",
    down=r"downsample_layers.\1",
    block=r"stages.\1.\2",
    depthwise="dwconv",
    mlp="pwconv",
    norm="norm",
)
"""Names of the released files, in that form."""

TIMM_RULES: list[tuple[str, str, str]] = _original_rules(
    stem="stem",
    down=r"stages.\1.downsample",
    block=r"stages.\1.blocks.\2",
    depthwise="conv_dw",
    mlp="mlp.fc",
    norm="head.norm",
)
"""Names of timm, in that form."""

SOURCES: dict[str, list[tuple[str, str, str]]] = {
    "transformers ConvNeXt": TORCH_RULES,
    "released ConvNeXt": ORIGINAL_RULES,
    "timm ConvNeXt": TIMM_RULES,
}
"""Namings that `interop.pretrained` recognises."""


@jax.custom_vjp
def depthwise_by_shifts(x: Array, kernel: Array) -> Array:
    """Depthwise convolution, "same" padding, as a sum of shifted products.

    XLA's CPU backend computes grouped convolutions with scalar loops (16 times slower than this form on
    [64,16,16,64]); shifted products vectorise. Sums are float32; the result has the dtype of x.

    Args:
        x: [B,H,W,C].
        kernel: [K,K,1,C], K odd.
    """
    side, (height, width) = kernel.shape[0], x.shape[1:3]
    padded = _padded(x, side)
    total = jnp.zeros(x.shape, jnp.float32)
    for i in range(side):
        for j in range(side):
            window = padded[:, i : i + height, j : j + width]
            total = total + window * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)


def _padded(x: Array, side: int) -> jax.Array:
    half = side // 2
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (half, half), (half, half), (0, 0)))
    # Without the barrier XLA may fuse the padding into every one of the reads.
    return jax.lax.optimization_barrier(padded)


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_by_shifts(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    d_kernel = _kernel_gradient(x, g, kernel.shape[0]).reshape(kernel.shape).astype(kernel.dtype)
    return depthwise_by_shifts(g, kernel[::-1, ::-1]), d_kernel


def _kernel_gradient(x: Array, g: Array, side: int) -> jax.Array:
    """Sum over images and positions of the window around each position times g there -> [K,K,C].

    Reductions are slow in XLA's CPU backend, sums of products are fast: so one position after the other
    is added for the whole window at once, and only the batch is reduced in the end.
    """
    width = x.shape[2]
    padded, g = _padded(x, side), g.astype(jnp.float32)

    def add_row(total: Array, row: Array) -> tuple[Array, None]:
        band = jax.lax.dynamic_slice_in_dim(padded, row, side, axis=1)
        here = jax.lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False)
        for j in range(width):
            total = total + band[:, :, j : j + side] * here[:, None, None, j]
        return total, None

    start = jnp.zeros((x.shape[0], side, side, x.shape[3]), jnp.float32)
    total, _ = jax.lax.scan(add_row, start, jnp.arange(x.shape[1]))
    return total.sum(0)


depthwise_by_shifts.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise_grouped(x: Array, kernel: Array) -> jax.Array:
    """The same as `depthwise_by_shifts` by the backend's grouped convolution."""
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


class DepthwiseConv(nn.Module):
    """7 x 7 depthwise convolution with bias; kernel [7,7,1,C]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B,H,W,C] to [B,H,W,C]."""
        channels = x.shape[-1]
        shape = (_WINDOW, _WINDOW, 1, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        convolve = depthwise_by_shifts if jax.default_backend() == "cpu" else depthwise_grouped
        y = convolve(x, kernel)
        return y + bias.astype(self.dtype)


class Block(nn.Module):
    """Residual block: depthwise convolution, LayerNorm, linear to 4C, GELU, linear, layer scale."""

    layer_scale: float
    drop_path: float = 0.0
    batch_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B,H,W,C] to [B,H,W,C]."""
        width = x.shape[-1]
        y = self._batch_norm(DepthwiseConv(dtype=self.dtype, name="depthwise")(x), train)
        y = layers.LayerNorm(1e-6, self.dtype, name="norm")(y)
        y = layers.Dense(4 * width, dtype=self.dtype, name="fc1")(y)
        y = layers.gelu(self._batch_norm(y, train, "fc1_bn"))
        y = layers.Dense(width, dtype=self.dtype, name="fc2")(y)
        y = self._batch_norm(y, train, "fc2_bn")
        if self.layer_scale > 0:
            init = nn.initializers.constant(self.layer_scale)
            scale = self.param("layer_scale", init, (width,), jnp.float32)
            y = y * scale.astype(self.dtype)
        if train and self.drop_path > 0:
            y = layers.dropout(y, self.drop_path, self.make_rng("dropout"), rows_only=True)
        return x + y

    def _batch_norm(self, y: Array, train: bool, name: str = "depthwise_bn") -> Array:
        if not self.batch_norm:
            return y
        return layers.BatchNorm(dtype=self.dtype, name=name)(y, train=train)


class Encoder(nn.Module):
    """ConvNeXt image encoder. Sizes come from `VARIANTS`.

    Fields:
        hidden_sizes, depths: channels and blocks per stage; each stage halves the grid.
        patch_size: side of the stem's patches in pixels.
        layer_scale: initial value of the layer scale; 0 = none.
        drop_path: rate of the last block, growing linearly from 0.
        layer_norm_eps: of the norm on the pooled output.
        batch_norm: BatchNorm after each depthwise and linear layer of a block and on the pooled output, not
            part of the paper: a small tower that starts from random weights learns several times faster.
            `fold` takes it out again, so such a tower still exports.
        dtype: compute dtype; parameters are float32.
    """

    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    patch_size: int = 4
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    layer_norm_eps: float = 1e-12
    batch_norm: bool = False
    dtype: Any = jnp.float32

    @property
    def width(self) -> int:
        """Features of a token and of the pooled output."""
        return self.hidden_sizes[-1]

    @property
    def stride(self) -> int:
        """Pixels per position of the last stage: the image size must be a multiple of it."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images.

        Args:
            image: [B,H,W,C], H and W multiples of `stride`.
            keep_ids: must be None: a convolution needs all patches.
            train: whether drop path is active (needs the rng "dropout").

        Returns:
            tokens [B,N,D], the last stage's grid row by row; pooled [B,D], the normalised mean over it;
            hidden: tuple of each stage's map [B,h,w,c].

        Raises:
            UserError: `keep_ids` given, image not float or not divisible, stages that do not match.
        """
        layers.check_whole_image(image, keep_ids, "a ConvNeXt")
        if len(self.hidden_sizes) != len(self.depths):
            raise UserError(
                f"hidden_sizes={self.hidden_sizes} and depths={self.depths} must have as many entries"
            )
        stride = self.stride
        if image.shape[1] % stride or image.shape[2] % stride:
            raise UserError(
                f"image of {image.shape[1]}x{image.shape[2]} px: this ConvNeXt needs multiples of {stride}"
            )
        x = self._patches(image, self.patch_size, self.hidden_sizes[0], "stem")
        x = layers.LayerNorm(1e-6, self.dtype, name="stem_norm")(x)
        hidden, done, total = [], 0, max(sum(self.depths) - 1, 1)
        for stage, (width, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            if stage:
                x = layers.LayerNorm(1e-6, self.dtype, name=f"down_{stage}_norm")(x)
                x = self._patches(x, 2, width, f"down_{stage}")
            for k in range(depth):
                block = Block(
                    layer_scale=self.layer_scale,
                    drop_path=self.drop_path * done / total,
                    batch_norm=self.batch_norm,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{k}",
                )
                x, done = block(x, train), done + 1
            hidden.append(x)
        mean = x.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
        pooled = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")(mean)
        if self.batch_norm:
            pooled = layers.BatchNorm(dtype=self.dtype, name="norm_bn")(pooled, train=train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"tokens": tokens, "pooled": pooled, "hidden": tuple(hidden)}

    def _patches(self, x: Array, side: int, width: int, name: str) -> Array:
        """Convolution whose stride is its window: [B,H,W,c] -> [B,H/side,W/side,width]."""
        grid = (x.shape[0], x.shape[1] // side, x.shape[2] // side, width)
        embed = vit.PatchEmbed(side, width, dtype=self.dtype, name=name)
        return embed(vit.image_patches(x, side)).reshape(grid)


def fold(params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the same function without BatchNorm.

    Args:
        params, batch_stats: both collections of an `Encoder` with `batch_norm`.

    Returns:
        Parameters of the encoder with `batch_norm=False`: each normalisation by the running statistics is
        merged into the layer before it.
    """
    folded = {
        name: fold(value, batch_stats.get(name, {})) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if not name.endswith(_BATCH_NORM)
    }
    for name in params:
        if name.endswith(_BATCH_NORM):
            norm, stats = params[name], batch_stats[name]
            factor = norm["scale"] / np.sqrt(stats["var"] + layers.BatchNorm.eps)
            before = dict(folded[name.removesuffix(_BATCH_NORM)])
            weight = "kernel" if "kernel" in before else "scale"
            before[weight] = before[weight] * factor
            before["bias"] = (before["bias"] - stats["mean"]) * factor + norm["bias"]
            folded[name.removesuffix(_BATCH_NORM)] = before
    return folded
