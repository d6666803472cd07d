"""What the convolutional towers share: PyTorch's padding, its maximum pooling, recomputed blocks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models.layers import Initializer
from medvlp_jax.types import Array

FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
"""Initial kernels of torchvision's ResNets."""


def convolution(
    features: int,
    kernel: int,
    stride: int,
    dtype: Any,
    name: str,
    kernel_init: Initializer = FAN_OUT,
) -> nn.Conv:
    """Square 2-D convolution without bias."""
    # Padding as PyTorch does it: "SAME" would shift the grid when the stride is 2.
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def max_pool(x: Array) -> jax.Array:
    """Maximum over 3 positions per axis, stride 2, one position of padding: [B,h,w,C] -> [B,h/2,w/2,C], or
    volumes [B,d,h,w,C] likewise."""
    space = x.ndim - 2
    lowest = np.array(-np.inf, x.dtype)
    window, strides = (1, *(3,) * space, 1), (1, *(2,) * space, 1)
    padding = ((0, 0), *((1, 1),) * space, (0, 0))
    return jax.lax.reduce_window(x, lowest, jax.lax.max, window, strides, padding)


def rematerialised(block: type[nn.Module], remat: str, tower: str) -> type[nn.Module]:
    """Block class, called as block(x, train), whose activations are kept ("none") or recomputed ("full").

    Raises:
        UserError: another value; names the tower, e.g. "a ResNet".
    """
    if remat == "none":
        return block
    if remat == "full":
        return nn.remat(block, static_argnums=(2,))
    raise UserError(f"remat={remat!r} is unknown for {tower}; choose none or full")
