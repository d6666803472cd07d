"""Decoder of U-Net (arXiv 1505.04597) on the maps of an image encoder, as in G2D (2312.01522)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.models.convolution import convolution
from medvlp_jax.models.layers import BatchNorm
from medvlp_jax.types import Array


class UnetDecoder(nn.Module):
    """Doubles the coarsest map, joins the next finer one, convolves twice; until the image's size is reached.

    Fields:
        channels: width of each step, coarsest first.
        classes: maps that come out.
        dtype: compute dtype; parameters are float32.
    """

    channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    classes: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Array, ...], size: tuple[int, int], *, train: bool = False
    ) -> jax.Array:
        """Scores of every pixel.

        Args:
            maps: [B, h, w, C] each, finest first, e.g. `image_hidden` of a ResNet.
            size: (H, W) of the result.
            train: whether batch statistics are used and updated.

        Returns:
            [B, H, W, classes] float32 logits.
        """
        *skips, x = maps
        for i, width in enumerate(self.channels):
            skip = skips.pop() if skips else None
            grid = tuple(min(2 * a, b) for a, b in zip(x.shape[1:3], size, strict=True))
            grid = grid if skip is None else skip.shape[1:3]
            x = _enlarge(x, grid)
            if skip is not None:
                x = jnp.concatenate([x, skip.astype(x.dtype)], axis=-1)
            for j in (1, 2):
                x = convolution(width, 3, 1, self.dtype, f"conv{i}_{j}")(x)
                x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}_{j}")(x, train=train))
        x = _enlarge(x, size).astype(jnp.float32)
        return jnp.asarray(nn.Conv(self.classes, (3, 3), padding=1, name="output")(x))


def _enlarge(x: Array, grid: tuple[int, ...]) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *grid, x.shape[-1]), "nearest")
