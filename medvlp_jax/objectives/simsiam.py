"""Self-supervision of the image tower without negatives (SimSiam, arXiv 2011.10566)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.losses.simsiam import simsiam
from medvlp_jax.models.heads import BatchNormProjection, MLPProjection
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, NthText, SecondImage
from medvlp_jax.types import Array, Batch, Metrics


@dataclasses.dataclass(frozen=True)
class SecondImageOfNthText(Corruption):
    """The second random view of the image beside one of several texts."""

    index: int = 0
    changes: ClassVar[frozenset[str]] = frozenset({"image", "text"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """What `NthText` and then `SecondImage` make of the batch; errors as theirs."""
        return SecondImage()(NthText(self.index)(batch, rng), rng)


class Simsiam(Objective):
    """SimSiam's loss on two views of each image; needs `data.image.views=2`.

    Fields:
        features, hidden: widths of its own projection of `image_pooled`; SimSiam: 2048 and 2048, with one
            hidden layer more.
        bottleneck: hidden width of the predictor, without the batch norm that SimSiam has there.
        several_texts: whether the rows have several texts (`data.text.per_image`).
    """

    features: int = 2048
    hidden: int = 2048
    bottleneck: int = 512
    several_texts: bool = False
    dtype: Any = jnp.float32

    def corruptions(self) -> tuple[Corruption, ...]:
        """The batch and the one with the second images."""
        if self.several_texts:
            return (NthText(0), SecondImageOfNthText(0))
        return (Clean(), SecondImage())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: spread, the mean deviation of the unit projections times the root of
        their width: about 1 for a healthy tower, 0 for one that makes all images equal."""
        head = BatchNormProjection(self.features, self.hidden, self.dtype, name="projection")
        predictor = MLPProjection(
            self.features, self.bottleneck, dtype=self.dtype, name="predictor"
        )
        pooled = jnp.concatenate([p.outputs["image_pooled"] for p in passes])
        # Both views at once: their batch statistics are common.
        states = jnp.asarray(head(pooled, train=train), jnp.float32)
        predicted = jnp.asarray(predictor(states, train=train), jnp.float32)
        mask = passes[0].batch.get("example_mask")
        loss = simsiam(*jnp.split(states, 2), *jnp.split(predicted, 2), example_mask=mask)
        lengths = jnp.linalg.norm(states, axis=-1, keepdims=True)
        spread = jnp.std(states / jnp.maximum(lengths, 1e-6), axis=0).mean() * self.features**0.5
        return loss, {"spread": jax.lax.stop_gradient(spread)}
