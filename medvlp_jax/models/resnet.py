"""ResNet (arXiv 1512.03385) in the form torchvision calls v1.5: the stride sits in the 3x3 convolution."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import convolution, layers
from medvlp_jax.types import Array, Outputs

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"depths": (1, 1, 1, 1), "bottleneck": True, "stem_width": 8},
    "18": {"depths": (2, 2, 2, 2), "bottleneck": False},
    "34": {"depths": (3, 4, 6, 3), "bottleneck": False},
    "50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "101": {"depths": (3, 4, 23, 3), "bottleneck": True},
    "152": {"depths": (3, 8, 36, 3), "bottleneck": True},
}
"""Constructor arguments per variant."""

_NORM_LEAVES = (
    ("scale", "weight"),
    ("bias", "bias"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)


def _torch_rules() -> list[tuple[str, str, str]]:
    stem, stage = "embedder.embedder", r"encoder.stages.{0}.layers.\1"
    rules = [(r"stem_conv/kernel", f"{stem}.convolution.weight", "conv")]
    rules += [(f"stem_norm/{a}", f"{stem}.normalization.{b}", "copy") for a, b in _NORM_LEAVES]
    for i in range(4):
        block, theirs = rf"layer{i + 1}_(\d+)", stage.format(i)
        parts = [(str(k + 1), f"layer.{k}") for k in range(3)] + [("_downsample", "shortcut")]
        for ours, name in parts:
            rules.append(
                (f"{block}/conv{ours}/kernel", f"{theirs}.{name}.convolution.weight", "conv")
            )
            rules += [
                (f"{block}/norm{ours}/{a}", f"{theirs}.{name}.normalization.{b}", "copy")
                for a, b in _NORM_LEAVES
            ]
    return rules


def _torchvision_rules() -> list[tuple[str, str, str]]:
    rules = [(r"stem_conv/kernel", "conv1.weight", "conv")]
    rules += [(f"stem_norm/{a}", f"bn1.{b}", "copy") for a, b in _NORM_LEAVES]
    block, theirs = r"layer(\d)_(\d+)", r"layer\1.\2"
    rules.append((f"{block}/conv(\\d)/kernel", f"{theirs}.conv\\3.weight", "conv"))
    rules.append((f"{block}/conv_downsample/kernel", f"{theirs}.downsample.0.weight", "conv"))
    for a, b in _NORM_LEAVES:
        rules.append((f"{block}/norm(\\d)/{a}", f"{theirs}.bn\\3.{b}", "copy"))
        rules.append((f"{block}/norm_downsample/{a}", f"{theirs}.downsample.1.{b}", "copy"))
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of `transformers.ResNetModel` (without the `resnet.` prefix), in the form explained at
`vit.TORCH_RULES`; they also cover `mean` and `var` of the collection `batch_stats`."""

TORCHVISION_RULES: list[tuple[str, str, str]] = _torchvision_rules()
"""Names of torchvision's ResNet without its `fc` layer, in the same form."""


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1 to 4 times the width."""

    width: int
    stride: int
    bottleneck: bool
    frozen_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B, h, w, Cin] to [B, h/stride, w/stride, Cout]."""
        out = self.width * (4 if self.bottleneck else 1)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != out:
            shortcut = self._conv_norm("_downsample", x, out, 1, self.stride, train)
        if self.bottleneck:
            x = nn.relu(self._conv_norm("1", x, self.width, 1, 1, train))
            x = nn.relu(self._conv_norm("2", x, self.width, 3, self.stride, train))
            x = self._conv_norm("3", x, out, 1, 1, train)
        else:
            x = nn.relu(self._conv_norm("1", x, self.width, 3, self.stride, train))
            x = self._conv_norm("2", x, out, 3, 1, train)
        return nn.relu(x + shortcut)

    def _conv_norm(
        self, name: str, x: Array, features: int, kernel: int, stride: int, train: bool
    ) -> Array:
        x = convolution.convolution(features, kernel, stride, self.dtype, f"conv{name}")(x)
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=f"norm{name}")
        return norm(x, train=train)


class Encoder(nn.Module):
    """ResNet image encoder. Sizes come from `VARIANTS`.

    Fields:
        depths: blocks per stage; bottleneck: block type; stem_width: channels after the stem.
        frozen_bn: normalise with the running statistics even in training. Otherwise training uses those of
            the global batch, padded rows included.
        token_layer: "layer3" or "layer4", the map whose positions are the image tokens (GLoRIA: layer3).
        remat: "none", or "full" to recompute each block in the backward pass.
        dtype: compute dtype; parameters and statistics are float32.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    stem_width: int = 64
    frozen_bn: bool = False
    token_layer: Literal["layer3", "layer4"] = "layer4"
    remat: Literal["none", "full"] = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images [B, H, W, C].

        Returns:
            hidden: the maps [B, h, w, C] after layer1 to layer4, at 1/4 to 1/32 of the image size; tokens
            [B, h*w, D], the map of `token_layer` row by row; pooled [B, D], the mean of layer4's map.

        Raises:
            UserError: `keep_ids` given (a convolution cannot drop patches), or image not float.
        """
        layers.check_whole_image(image, keep_ids, "a ResNet")
        if self.token_layer not in ("layer3", "layer4"):
            raise UserError(f"token_layer={self.token_layer!r} is unknown; choose layer3 or layer4")
        x = convolution.convolution(self.stem_width, 7, 2, self.dtype, "stem_conv")(image)
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name="stem_norm")
        x = nn.relu(norm(x, train=train))
        x = convolution.max_pool(x)
        block_class = convolution.rematerialised(Block, self.remat, "a ResNet")
        maps: list[Array] = []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                block = block_class(
                    width=self.stem_width * 2**stage,
                    stride=stride,
                    bottleneck=self.bottleneck,
                    frozen_bn=self.frozen_bn,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )
                x = block(x, train)
            maps.append(x)
        tokens = maps[2 if self.token_layer == "layer3" else 3]
        pooled = x.astype(jnp.float32).mean(axis=(1, 2)).astype(x.dtype)
        return {
            "hidden": tuple(maps),
            "tokens": tokens.reshape(tokens.shape[0], -1, tokens.shape[-1]),
            "pooled": pooled,
        }
