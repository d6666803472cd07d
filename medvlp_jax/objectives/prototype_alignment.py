"""Cross-modal prototypes (MGCA, arXiv 2210.06044, section 3.4): one for images and reports of a disease."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.losses.prototype import prototype_alignment
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


def unit_rows(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Random rows of norm 1."""
    table = jax.random.normal(key, shape, dtype)
    return table / jnp.linalg.norm(table, axis=-1, keepdims=True)


class PrototypeAlignment(Objective):
    """Swapped prediction over K prototypes.

    The rows of the parameter `prototypes` start on the unit sphere; `optim.unit_norm=("prototypes$",)`
    keeps them there after every step, and `optim.groups` holds them still for the first epoch.

    Fields:
        count: K.
        temperature: tau_3.
        epsilon, iterations: of the Sinkhorn codes.
    """

    count: int = 500
    temperature: float = 0.2
    epsilon: float = 0.05
    iterations: int = 3

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        del train
        (clean,) = passes
        image, text = clean.outputs["image_embed"], clean.outputs["text_embed"]
        table = self.param("prototypes", unit_rows, (self.count, image.shape[-1]))
        loss = prototype_alignment(
            image,
            text,
            table,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            example_mask=clean.batch.get("example_mask"),
        )
        return loss, {}
