"""One vector from the maps of all stages of a convolutional tower (IMITATE, arXiv 2310.07355)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers
from medvlp_jax.types import Array


def adaptive_mean(x: Array, size: int) -> jax.Array:
    """Mean over a grid of size x size bins of maps [B,h,w,C] -> [B,size,size,C] (`AdaptiveAvgPool2d`).

    Bin i covers the rows from floor(i h / size) to ceil((i + 1) h / size): bins overlap where size does not
    divide h, and repeat rows where h is smaller.
    """
    rows, columns = (jnp.asarray(_bins(n, size)) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x.astype(jnp.float32), precision="highest")


def _bins(length: int, size: int) -> np.ndarray:
    """[size, length] weights whose rows are the means over the bins."""
    weights = np.zeros((size, length), np.float32)
    for i in range(size):
        low, high = i * length // size, -(-(i + 1) * length // size)
        weights[i, low:high] = 1 / (high - low)
    return weights


class MultiLevelPool(nn.Module):
    """Some channels of every stage, each as one token of its pooled map, and a class token attend to all.

    In training the channels are drawn anew for each batch; else they are evenly spaced. The attention has a
    residual connection; the class token's state is returned.

    Fields:
        size: side of the pooled maps; a token has size * size entries.
        shares: of the channels of each stage that are kept.
        heads: of the attention.
    """

    size: int = 16
    shares: tuple[float, ...] = (0.25, 0.15, 0.10, 0.10)
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], *, train: bool = False) -> Array:
        """Maps the stages' maps, each [B,h,w,C], to [B, size * size].

        Raises:
            UserError: the tower's hidden states are no maps, or not as many as there are shares.
        """
        if len(maps) != len(self.shares) or any(x.ndim != 4 for x in maps):
            raise UserError(
                f"multi-level pooling needs {len(self.shares)} maps [B,h,w,C], as model.image_encoder.name="
                f"'resnet' returns them, not {len(maps)} arrays of {[x.ndim for x in maps]} axes"
            )
        tokens = []
        for x, share in zip(maps, self.shares, strict=True):
            kept = max(int(x.shape[-1] * share), 1)
            picked = jnp.linspace(0, x.shape[-1] - 1, kept).round().astype(jnp.int32)
            if train:
                picked = jax.random.randint(self.make_rng("dropout"), (kept,), 0, x.shape[-1])
            pooled = adaptive_mean(jnp.take(x, picked, axis=-1), self.size)
            tokens.append(pooled.reshape(x.shape[0], -1, kept).swapaxes(1, 2))
        width = self.size**2
        states = jnp.concatenate([jnp.zeros((maps[0].shape[0], 1, width)), *tokens], axis=1)
        init = nn.initializers.normal(0.02)
        states = states + self.param("positions", init, (1, states.shape[1], width))
        attention = layers.MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")
        return (states[:, :1] + attention(states[:, :1], states, train=train)[0])[:, 0]
