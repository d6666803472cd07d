"""DenseNet (arXiv 1608.06993) in the form of torchvision: DenseNet-BC with growth rate 32."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import convolution, layers
from medvlp_jax.types import Array, Outputs

_BOTTLENECK = 4  # channels of a layer's 1x1 convolution, in growth rates

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"depths": (2, 2), "growth": 8, "stem_width": 16},
    "121": {"depths": (6, 12, 24, 16)},
    "169": {"depths": (6, 12, 32, 32)},
}
"""Constructor arguments per variant."""

_NORM_LEAVES = (
    ("scale", "weight"),
    ("bias", "bias"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)


_HE = nn.initializers.he_normal()


def _torch_rules() -> list[tuple[str, str, str]]:
    layer, theirs = r"block(\d)_layer(\d+)", r"features.denseblock\1.denselayer\2"
    rules = [
        (r"stem_conv/kernel", "features.conv0.weight", "conv"),
        (rf"{layer}/conv(1|2)/kernel", rf"{theirs}.conv\3.weight", "conv"),
        (r"transition(\d)_conv/kernel", r"features.transition\1.conv.weight", "conv"),
    ]
    for a, b in _NORM_LEAVES:
        rules += [
            (f"stem_norm/{a}", f"features.norm0.{b}", "copy"),
            (rf"{layer}/norm(1|2)/{a}", rf"{theirs}.norm\3.{b}", "copy"),
            (rf"transition(\d)_norm/{a}", rf"features.transition\1.norm.{b}", "copy"),
            (f"norm/{a}", f"features.norm5.{b}", "copy"),
        ]
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of torchvision's DenseNet without its `classifier`, in the form explained at `vit.TORCH_RULES`; they
also cover `mean` and `var` of the collection `batch_stats`."""


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution to `growth` new channels."""

    growth: int
    frozen_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B,h,w,C] to [B,h,w,C+growth]: the input, then the new channels."""
        y = self._norm("norm1", x, train)
        y = convolution.convolution(_BOTTLENECK * self.growth, 1, 1, self.dtype, "conv1", _HE)(y)
        y = self._norm("norm2", y, train)
        y = convolution.convolution(self.growth, 3, 1, self.dtype, "conv2", _HE)(y)
        return jnp.concatenate([x, y], axis=-1)

    def _norm(self, name: str, x: Array, train: bool) -> Array:
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=name)
        return nn.relu(norm(x, train=train))


class Encoder(nn.Module):
    """DenseNet image encoder. Sizes come from `VARIANTS`.

    Fields:
        depths: layers per dense block; between blocks channels and grid are halved.
        growth: channels that each layer adds; stem_width: channels after the stem.
        frozen_bn: normalise with the running statistics even in training. Otherwise training uses those of
            the global batch, padded rows included.
        remat: "none", or "full" to recompute each layer in the backward pass: what is kept otherwise grows
            with the square of a block's depth.
        dtype: compute dtype; parameters and statistics are float32.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem_width: int = 64
    frozen_bn: bool = False
    remat: Literal["none", "full"] = "none"
    dtype: Any = jnp.float32

    @property
    def stride(self) -> int:
        """Pixels per position of the last block."""
        return 4 * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images.

        Args:
            image: [B,H,W,C], at least `stride` pixels high and wide; C (1 or 3) fixes the stem's parameters.
            keep_ids: must be None: a convolution needs all patches.
            train: whether BatchNorm uses and updates with the batch's statistics (see `frozen_bn`).

        Returns:
            tokens [B,N,D], the last block's grid row by row after BatchNorm and ReLU; pooled [B,D], their
            mean; hidden: tuple of the maps [B,h,w,C] after each dense block, before they are normalised.

        Raises:
            UserError: `keep_ids` given, image not float or too small.
        """
        self._check(image, keep_ids)
        x = convolution.convolution(self.stem_width, 7, 2, self.dtype, "stem_conv", _HE)(image)
        x = convolution.max_pool(self._norm("stem_norm", x, train))
        layer_class, maps = convolution.rematerialised(Layer, self.remat, "a DenseNet"), []
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = self._transition(x, stage - 1, train)
            for i in range(1, depth + 1):
                layer = layer_class(
                    growth=self.growth,
                    frozen_bn=self.frozen_bn,
                    dtype=self.dtype,
                    name=f"block{stage}_layer{i}",
                )
                x = layer(x, train)
            maps.append(x)
        x = self._norm("norm", x, train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        pooled = tokens.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        return {"tokens": tokens, "pooled": pooled, "hidden": tuple(maps)}

    def _check(self, image: Array, keep_ids: Array | None) -> None:
        layers.check_whole_image(image, keep_ids, "a DenseNet")
        if min(image.shape[1:3]) < self.stride:
            raise UserError(
                f"image of {image.shape[1]}x{image.shape[2]} px: this DenseNet needs at least "
                f"{self.stride} px along each side"
            )

    def _norm(self, name: str, x: Array, train: bool) -> Array:
        norm = layers.BatchNorm(frozen=self.frozen_bn, dtype=self.dtype, name=name)
        return nn.relu(norm(x, train=train))

    def _transition(self, x: Array, stage: int, train: bool) -> Array:
        """Halves channels and grid: [B,h,w,C] -> [B,h/2,w/2,C/2]."""
        x = self._norm(f"transition{stage}_norm", x, train)
        x = convolution.convolution(
            x.shape[-1] // 2, 1, 1, self.dtype, f"transition{stage}_conv", _HE
        )(x)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
