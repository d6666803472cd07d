"""The modified ResNet of CLIP (arXiv 2103.00020, section 2.4), equal to the image tower of OpenAI's weights.

Three 3x3 convolutions in the stem, average pooling before every convolution that was strided, and attention
pooling in place of the mean.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import convolution, layers
from medvlp_jax.types import Array, Outputs

_EXPANSION = 4  # channels after a block, in widths of its 3x3 convolution
_HEAD_WIDTH = 64  # of the attention pooling
_STRIDE = 32  # pixels per position of the last map

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"depths": (1, 1, 1, 1), "stem_width": 8, "output_dim": 32},
    "RN50": {"depths": (3, 4, 6, 3), "output_dim": 1024},
    "RN101": {"depths": (3, 4, 23, 3), "output_dim": 512},
    "RN50x4": {"depths": (4, 6, 10, 6), "stem_width": 80, "output_dim": 640},
}
"""Constructor arguments per variant; OpenAI's RN50 and RN101 take images of 224 px, RN50x4 of 288 px."""

_NORM_LEAVES = (
    ("scale", "weight"),
    ("bias", "bias"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)


def _torch_rules() -> list[tuple[str, str, str]]:
    block, theirs = r"layer(\d)_(\d+)", r"layer\1.\2"
    rules = [
        (r"stem_conv(\d)/kernel", r"conv\1.weight", "conv"),
        (rf"{block}/conv(\d)/kernel", rf"{theirs}.conv\3.weight", "conv"),
        (rf"{block}/conv_downsample/kernel", rf"{theirs}.downsample.0.weight", "conv"),
        (r"pool/position_embed", "attnpool.positional_embedding", "leading"),
    ]
    for a, b in _NORM_LEAVES:
        rules += [
            (rf"stem_norm(\d)/{a}", rf"bn\1.{b}", "copy"),
            (rf"{block}/norm(\d)/{a}", rf"{theirs}.bn\3.{b}", "copy"),
            (rf"{block}/norm_downsample/{a}", rf"{theirs}.downsample.1.{b}", "copy"),
        ]
    for ours, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "c")):
        rules += [
            (f"pool/{ours}/kernel", f"attnpool.{name}_proj.weight", "linear"),
            (f"pool/{ours}/bias", f"attnpool.{name}_proj.bias", "copy"),
        ]
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of OpenAI's CLIP ResNets (without the `visual.` prefix), in the form explained at `vit.TORCH_RULES`;
they also cover `mean` and `var` of the collection `batch_stats`."""


class Block(nn.Module):
    """Residual block: 1x1, 3x3 and 1x1 convolution to 4 times the width.

    With stride 2 the 3x3 convolution and the shortcut are average-pooled 2x2 where a ResNet skips positions.
    """

    width: int
    stride: int
    frozen_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B,h,w,Cin] to [B,h/stride,w/stride,4*width]."""
        out = _EXPANSION * self.width
        shortcut = x
        if self.stride != 1 or x.shape[-1] != out:
            pooled = _average_pool(x) if self.stride == 2 else x
            shortcut = self._conv_norm("_downsample", pooled, out, 1, train)
        x = nn.relu(self._conv_norm("1", x, self.width, 1, train))
        x = nn.relu(self._conv_norm("2", x, self.width, 3, train))
        if self.stride == 2:
            x = _average_pool(x)
        return nn.relu(self._conv_norm("3", x, out, 1, train) + shortcut)

    def _conv_norm(self, name: str, x: Array, features: int, kernel: int, train: bool) -> Array:
        x = convolution.convolution(features, kernel, 1, self.dtype, f"conv{name}")(x)
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=f"norm{name}")
        return norm(x, train=train)


class AttentionPool(nn.Module):
    """Multi-head attention whose one query is the mean of the map; `out` maps it to `output_dim`.

    `position_embed` [1,1+N,C]: first the mean's entry, then the positions of the grid row by row. Its length
    is fixed by the first image seen.
    """

    output_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B,h,w,C] to [B,output_dim]."""
        batch, rows, columns, width = x.shape
        if width % _HEAD_WIDTH:
            raise UserError(
                f"attention pooling has heads of {_HEAD_WIDTH} channels, which {width} is not divisible by; "
                "set stem_width to an even number"
            )
        x = x.reshape(batch, -1, width)
        mean = x.astype(jnp.float32).mean(axis=1, keepdims=True).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        x = x + self._positions(rows, columns, width).astype(self.dtype)
        dense = functools.partial(layers.Dense, dtype=self.dtype)
        split = (width // _HEAD_WIDTH, _HEAD_WIDTH)
        query = dense(width, name="query")(x[:, :1]).reshape(batch, 1, *split)
        key = dense(width, name="key")(x).reshape(batch, -1, *split)
        value = dense(width, name="value")(x).reshape(batch, -1, *split)
        # Fused kernels gain nothing on a single query.
        pooled, _ = layers.attention(query, key, value, implementation="einsum")
        return dense(self.output_dim, name="out")(pooled.reshape(batch, width))

    def _positions(self, rows: int, columns: int, width: int) -> Array:
        length = 1 + rows * columns
        if self.has_variable("params", "position_embed"):
            have = self.get_variable("params", "position_embed").shape[1]
            if have != length:
                raise UserError(
                    f"a map of {rows}x{columns} positions needs a position table of {length} entries, but "
                    f"the parameters hold {have} (images of {round((have - 1) ** 0.5) * _STRIDE} px); set "
                    "the image size to that or resample the table with "
                    "medvlp_jax.models.vit.resample_positions"
                )
        init = nn.initializers.normal(width**-0.5)
        return self.param("position_embed", init, (1, length, width), jnp.float32)


class Encoder(nn.Module):
    """CLIP's ResNet image encoder. Sizes come from `VARIANTS`.

    Fields:
        depths: blocks per stage; stem_width: channels after the stem; output_dim: width of `pooled`.
        frozen_bn: normalise with the running statistics even in training. Otherwise training uses those of
            the global batch, padded rows included.
        remat: "none", or "full" to recompute each block in the backward pass.
        dtype: compute dtype; parameters and statistics are float32.
    """

    depths: tuple[int, ...]
    output_dim: int
    stem_width: int = 64
    frozen_bn: bool = False
    remat: Literal["none", "full"] = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images.

        Args:
            image: [B,H,W,C], at least 32 pixels high and wide and always of the same size.
            keep_ids: must be None: a convolution needs all patches.
            train: whether BatchNorm uses and updates with the batch's statistics (see `frozen_bn`).

        Returns:
            hidden: the maps [B,h,w,C] after layer1 to layer4, at 1/4 to 1/32 of the image size; tokens
            [B,h*w,C], layer4's map row by row; pooled [B,output_dim], after attention pooling.

        Raises:
            UserError: `keep_ids` given, image not float, too small or not of the size of the position table.
        """
        self._check(image, keep_ids)
        x, maps = self._stem(image, train), []
        block_class = convolution.rematerialised(Block, self.remat, "a ResNet")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                block = block_class(
                    width=self.stem_width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    frozen_bn=self.frozen_bn,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )
                x = block(x, train)
            maps.append(x)
        return {
            "hidden": tuple(maps),
            "tokens": x.reshape(x.shape[0], -1, x.shape[-1]),
            "pooled": AttentionPool(self.output_dim, self.dtype, name="pool")(x),
        }

    def _check(self, image: Array, keep_ids: Array | None) -> None:
        layers.check_whole_image(image, keep_ids, "a ResNet")
        if len(self.depths) != 4:
            raise UserError(f"depths={self.depths}: a CLIP ResNet has 4 stages")
        if min(image.shape[1:3]) < _STRIDE:
            raise UserError(
                f"image of {image.shape[1]}x{image.shape[2]} px: this ResNet needs at least {_STRIDE} px "
                "along each side"
            )

    def _stem(self, x: Array, train: bool) -> Array:
        """[B,H,W,C] -> [B,H/4,W/4,stem_width]."""
        for i, divisor in enumerate((2, 2, 1), start=1):
            stride = 2 if i == 1 else 1
            width = self.stem_width // divisor
            x = convolution.convolution(width, 3, stride, self.dtype, f"stem_conv{i}")(x)
            norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=f"stem_norm{i}")
            x = nn.relu(norm(x, train=train))
        return _average_pool(x)


def _average_pool(x: Array) -> Array:
    """Mean of 2x2 neighbours: [B,h,w,C] -> [B,h/2,w/2,C]; an odd last row or column is left out."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))
