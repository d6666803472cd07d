"""A system: one model and its weighted objectives, as one Linen module."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.momentum_contrast import follow
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, Momentum
from medvlp_jax.types import Array, Batch, Metrics, Outputs


class System(nn.Module):
    """Runs one forward pass per distinct corruption and sums the objectives.

    The collection `momentum` holds the copies of the towers that objectives ask for (`Momentum`), `queue`
    what objectives keep from earlier batches; a training step carries both on in its model state.

    Fields:
        model: encoders and fusion.
        objectives: name -> objective; parameters are `objectives_<name>/...`.
        weights: name -> factor of its loss.
    """

    model: VisionLanguageModel
    objectives: Mapping[str, Objective]
    weights: Mapping[str, float]

    @nn.compact
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
        copies: dict[str, Any] = {}
        passes = {}
        # The copies come last: in `init` they are made of parameters, which the other passes create.
        for corruption in sorted(wanted, key=lambda c: isinstance(c, Momentum)):
            seen = corruption.of if isinstance(corruption, Momentum) else corruption
            # The key depends on the corruption itself, not on which objectives are beside it.
            own = jax.random.fold_in(key, zlib.crc32(repr(seen).encode()) & 0x7FFFFFFF)
            changed = seen(batch, own)
            if isinstance(corruption, Momentum):
                if corruption.name not in copies:
                    copies[corruption.name] = self._copy(corruption, train)
                encoded = self._encode_copy(corruption, copies[corruption.name], changed, train)
                passes[corruption] = Pass(changed, encoded)
                continue
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

    def _copy(self, momentum: Momentum, train: bool) -> Any:
        """Parameters of the momentum towers, which are brought up to date first when training.

        Raises:
            UserError: no objective runs the towers themselves.
        """
        own = self.model.variables.get("params")
        if not own:
            raise UserError(
                "momentum towers follow the model's: add an objective that trains these"
            )
        params = {k: v for k, v in own.items() if k.split("_")[0] in momentum.sides}
        # The key `model` gives the copies the placement of what they copy (`parallel.rules`).
        kept = self.variable(
            "momentum",
            momentum.name,
            lambda: {"model": jax.tree.map(jnp.copy, params), "steps": jnp.zeros([], jnp.int32)},
        )
        updates = train and self.is_mutable_collection("momentum")
        if updates and not self.is_initializing():
            # Not the values of `init`: pretrained weights may have replaced those since.
            decay = jnp.where(kept.value["steps"] == 0, 0.0, momentum.decay)
            kept.value = {
                "model": follow(kept.value["model"], params, decay),
                "steps": kept.value["steps"] + 1,
            }
        return kept.value["model"]

    def _encode_copy(self, momentum: Momentum, params: Any, batch: Batch, train: bool) -> Outputs:
        """Outputs of the momentum towers, without gradient; batch statistics are read, not changed."""
        model, variables = self.model.unbind()
        statistics = {k: v for k, v in variables.items() if k != "params"}
        rngs = {"dropout": self.make_rng("dropout")} if train else {}
        outputs: Outputs = {}
        for side in momentum.sides:
            encoded, _ = model.apply(
                {"params": params, **statistics},
                batch,
                train=train,
                rngs=rngs,
                mutable=list(statistics),
                method=f"encode_{side}",
            )
            outputs.update(encoded)
        return jax.lax.stop_gradient(outputs)

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
