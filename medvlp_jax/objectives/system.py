"""A system: one model and its weighted objectives, as one Linen module."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption
from medvlp_jax.types import Array, Batch, Metrics, Outputs


class System(nn.Module):
    """Runs one forward pass per distinct corruption and sums the objectives.

    Fields:
        model: encoders and fusion.
        objectives: name -> objective; parameters are `objectives_<name>/...`.
        weights: name -> factor of its loss.
    """

    model: VisionLanguageModel
    objectives: Mapping[str, Objective]
    weights: Mapping[str, float]

    def __call__(self, batch: Batch, *, train: bool = False) -> tuple[Array, Metrics]:
        """Total loss (float32 scalar) and metrics `<objective>/<metric>`."""
        passes = self._passes(batch, train)
        total = jnp.zeros([], jnp.float32)
        metrics: Metrics = {}
        for name, objective in self.objectives.items():
            mine = tuple(passes[c] for c in objective.corruptions())
            loss, extra = objective(mine, train=train)
            total = total + self.weights[name] * loss.astype(jnp.float32)
            metrics[f"{name}/loss"] = loss
            metrics.update({f"{name}/{key}": value for key, value in extra.items()})
        return total, {"loss": total, **metrics}

    def _passes(self, batch: Batch, train: bool) -> dict[Corruption, Pass]:
        """Corruption -> pass. A tower whose input a corruption leaves alone is not run again for it."""
        wanted: dict[Corruption, None] = {}
        for objective in self.objectives.values():
            wanted.update(dict.fromkeys(objective.corruptions()))
        key = self.make_rng("corruption")
        towers: dict[tuple[str, Corruption], Outputs] = {}
        passes = {}
        for corruption in wanted:
            # The key depends on the corruption itself, not on which objectives are beside it.
            own = jax.random.fold_in(key, zlib.crc32(repr(corruption).encode()) & 0x7FFFFFFF)
            changed = corruption(batch, own)
            outputs: Outputs = {}
            for side in ("image", "text"):
                source = corruption if side in corruption.changes else Clean()
                if (side, source) not in towers:
                    encode = getattr(self.model, f"encode_{side}")
                    towers[side, source] = encode(changed, train=train)
                outputs.update(towers[side, source])
            outputs.update(self.model.join(outputs, changed, train=train))
            passes[corruption] = Pass(changed, outputs)
        return passes

    def encode_image(self, batch: Batch) -> Outputs:
        """Image outputs of the model, without dropout."""
        return self.model.encode_image(batch, train=False)

    def encode_text(self, batch: Batch) -> Outputs:
        """Text outputs of the model, without dropout."""
        return self.model.encode_text(batch, train=False)

    def decode(self, image: Outputs, batch: Batch) -> Outputs:
        """Decoder outputs of the model, without dropout."""
        return self.model.decode(image, batch, train=False)

    def fuse(self, image: Outputs, text: Outputs, batch: Batch) -> Outputs:
        """Fused outputs of the model, without dropout."""
        return self.model.fuse(image, text, batch, train=False)
