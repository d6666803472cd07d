"""3-D ResNet of basic blocks for volumes: Med3D's (arXiv 1904.00625) and the R3D of arXiv 1711.11248."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import convolution, layers
from medvlp_jax.types import Array, Outputs

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"depths": (1, 1, 1, 1), "stem_width": 8},
    "18": {"depths": (2, 2, 2, 2)},
    "34": {"depths": (3, 4, 6, 3)},
    "video-18": {
        "depths": (2, 2, 2, 2),
        "stem_kernel": (3, 7, 7),
        "stem_stride": (1, 2, 2),
        "max_pool": False,
        "dilated": False,
        "shortcut": "projection",
    },
}
"""Constructor arguments per variant: 18 and 34 are those of MedicalNet's weights (34 is UniBrain's encoder),
video-18 is torchvision's r3d_18."""

_NORM_LEAVES = (
    ("scale", "weight"),
    ("bias", "bias"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)
_BLOCK, _THEIRS = r"layer(\d)_(\d+)", r"layer\1.\2"


def _torch_rules(stem: tuple[str, str], conv: str, norm: str) -> list[tuple[str, str, str]]:
    rules = [
        ("stem_conv/kernel", f"{stem[0]}.weight", "conv"),
        (rf"{_BLOCK}/conv(\d)/kernel", rf"{_THEIRS}.{conv}.weight", "conv"),
        (f"{_BLOCK}/conv_downsample/kernel", rf"{_THEIRS}.downsample.0.weight", "conv"),
    ]
    for a, b in _NORM_LEAVES:
        rules += [
            (f"stem_norm/{a}", f"{stem[1]}.{b}", "copy"),
            (rf"{_BLOCK}/norm(\d)/{a}", rf"{_THEIRS}.{norm}.{b}", "copy"),
            (f"{_BLOCK}/norm_downsample/{a}", rf"{_THEIRS}.downsample.1.{b}", "copy"),
        ]
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules(("conv1", "bn1"), r"conv\3", r"bn\3")
"""Names of MedicalNet's ResNets (without the `module.` prefix and without `conv_seg`), in the form explained
at `vit.TORCH_RULES`; they also cover `mean` and `var` of the collection `batch_stats`."""

VIDEO_TORCH_RULES: list[tuple[str, str, str]] = _torch_rules(
    ("stem.0", "stem.1"), r"conv\3.0", r"conv\3.1"
)
"""Names of torchvision's `r3d_18` without its `fc` layer, in the same form."""


class Block(nn.Module):
    """Residual block of two 3x3x3 convolutions.

    `shortcut` is used where the shape changes: "projection" = 1x1x1 convolution and BatchNorm, "padding" =
    every stride-th position, with zeros for the new channels.
    """

    width: int
    stride: int
    dilation: int
    shortcut: Literal["projection", "padding"]
    frozen_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B,d,h,w,Cin] to [B,d/stride,h/stride,w/stride,width]."""
        y = nn.relu(self._conv_norm("1", x, 3, self.stride, train))
        y = self._conv_norm("2", y, 3, 1, train)
        return nn.relu(y + self._shortcut(x, train))

    def _shortcut(self, x: Array, train: bool) -> Array:
        if self.stride == 1 and x.shape[-1] == self.width:
            return x
        if self.shortcut == "projection":
            return self._conv_norm("_downsample", x, 1, self.stride, train)
        if self.shortcut != "padding":
            raise UserError(f"shortcut={self.shortcut!r} is unknown; choose projection or padding")
        x = x[:, :: self.stride, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0),) * 4 + ((0, self.width - x.shape[-1]),))

    def _conv_norm(self, name: str, x: Array, kernel: int, stride: int, train: bool) -> Array:
        conv = _convolution(
            self.width,
            (kernel,) * 3,
            (stride,) * 3,
            1 if kernel == 1 else self.dilation,
            self.dtype,
            f"conv{name}",
        )
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=f"norm{name}")
        return norm(conv(x), train=train)


class Encoder(nn.Module):
    """3-D ResNet encoder of volumes. Sizes come from `VARIANTS`.

    Fields:
        depths: blocks per stage; stem_width: channels after the stem.
        stem_kernel, stem_stride: of the first convolution, as (depth, height, width).
        max_pool: 3x3x3 maximum with stride 2 after the stem.
        dilated: the last two stages keep the grid and dilate by 2 and 4 (Med3D); otherwise they halve it.
        shortcut: see `Block`.
        frozen_bn: normalise with the running statistics even in training. Otherwise training uses those of
            the global batch, padded rows included.
        remat: "none", or "full" to recompute each block in the backward pass.
        dtype: compute dtype; parameters and statistics are float32.
    """

    depths: tuple[int, ...]
    stem_width: int = 64
    stem_kernel: tuple[int, int, int] = (7, 7, 7)
    stem_stride: tuple[int, int, int] = (2, 2, 2)
    max_pool: bool = True
    dilated: bool = True
    shortcut: Literal["projection", "padding"] = "padding"
    frozen_bn: bool = False
    remat: Literal["none", "full"] = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float volumes.

        Args:
            image: [B,D,H,W,C], D slices; C (1 for CT and MRI) fixes the stem's parameters.
            keep_ids: must be None: a convolution needs all patches.
            train: whether BatchNorm uses and updates with the batch's statistics (see `frozen_bn`).

        Returns:
            hidden: the maps [B,d,h,w,C] after layer1 to layer4; tokens [B,d*h*w,C], layer4's map slice by
            slice and row by row; pooled [B,C], their mean.

        Raises:
            UserError: `keep_ids` given, or image not float or not a batch of volumes.
        """
        self._check(image, keep_ids)
        stem = _convolution(
            self.stem_width, self.stem_kernel, self.stem_stride, 1, self.dtype, "stem_conv"
        )
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name="stem_norm")
        x = nn.relu(norm(stem(image), train=train))
        if self.max_pool:
            x = convolution.max_pool(x)
        block_class, maps = convolution.rematerialised(Block, self.remat, "a ResNet"), []
        for stage, depth in enumerate(self.depths):
            stride, dilation = self._geometry(stage)
            for i in range(depth):
                block = block_class(
                    width=self.stem_width * 2**stage,
                    stride=stride if i == 0 else 1,
                    dilation=dilation,
                    shortcut=self.shortcut,
                    frozen_bn=self.frozen_bn,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )
                x = block(x, train)
            maps.append(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        pooled = tokens.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        return {"hidden": tuple(maps), "tokens": tokens, "pooled": pooled}

    def _check(self, image: Array, keep_ids: Array | None) -> None:
        if keep_ids is not None:
            raise UserError(
                "a 3-D ResNet cannot encode a subset of the patches (image_keep_ids); drop the objective "
                "that masks the image"
            )
        if image.ndim != 5:
            raise UserError(
                f"image has shape {image.shape}; a 3-D ResNet wants volumes [B,D,H,W,C]; for flat images use "
                "the encoder resnet"
            )
        layers.check_normalised(image)
        if len(self.depths) != 4:
            raise UserError(f"depths={self.depths}: a 3-D ResNet has 4 stages")

    def _geometry(self, stage: int) -> tuple[int, int]:
        """Stride of a stage's first block and dilation of all of them."""
        if stage == 0:
            return 1, 1
        if self.dilated and stage >= 2:
            return 1, 2 ** (stage - 1)
        return 2, 1


def _convolution(
    features: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: int,
    dtype: Any,
    name: str,
) -> nn.Conv:
    # Padding as PyTorch does it: "SAME" would shift the grid when the stride is 2.
    return nn.Conv(
        features,
        kernel,
        strides=strides,
        padding=[(dilation * (k // 2), dilation * (k // 2)) for k in kernel],
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
        name=name,
    )
