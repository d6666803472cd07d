"""Self-supervision of the image tower beside a contrast with text (SLIP, arXiv 2112.12750)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.losses.nt_xent import nt_xent
from medvlp_jax.models.heads import BatchNormProjection
from medvlp_jax.models.layers import l2_normalize
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, SecondImage
from medvlp_jax.types import Array, Metrics


class Simclr(Objective):
    """SimCLR's loss on two views of each image; needs `data.image.views=2`.

    Fields:
        features, hidden: widths of its own projection of `image_pooled` (SLIP: 256 and 4096, with one hidden
            layer more); features=0 takes `image_embed` instead.
        temperature: tau.
    """

    features: int = 256
    hidden: int = 4096
    temperature: float = 0.1
    dtype: Any = jnp.float32

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch and the one with the second images."""
        return (Clean(), SecondImage())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        views = [p.outputs["image_embed"] for p in passes]
        if self.features:
            head = BatchNormProjection(self.features, self.hidden, self.dtype, name="projection")
            pooled = jnp.concatenate([p.outputs["image_pooled"] for p in passes])
            # Both views at once: their batch statistics are common.
            views = jnp.split(l2_normalize(head(pooled, train=train)), 2)
        first, second = views
        mask = passes[0].batch.get("example_mask")
        losses: tuple[jax.Array, jax.Array] = nt_xent(
            first, second, temperature=self.temperature, example_mask=mask
        )
        return (losses[0] + losses[1]) / 2, {}
