"""Image-text contrast with momentum towers and queues (ALBEF, X-REM, M2I2, MUMC, X-VL, MOTOR)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.losses import momentum_contrast as loss_lib
from medvlp_jax.models.layers import l2_normalize
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, Momentum
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class MomentumContrast(Objective):
    """ALBEF's contrast; the collection `queue` holds `image` and `text` [Q,D], `position`, `filled`, `steps`.

    The queues take the momentum towers' embeddings of the whole global batch after each training step, so
    they are the same on any number of devices.

    Fields:
        queue_size: keys that are kept, at least the batch; 0 = only the batch.
        decay: of the momentum towers.
        alpha: share of the pseudo-targets; alpha_ramp: steps over which it rises from 0 (ALBEF: one epoch).
        unimodal_weight, unimodal_alpha: see `losses.momentum_contrast.momentum_contrast`; MUMC: 0.5 and 0.
        queue_start: "random" fills the queue with random directions (MoCo, ALBEF), "empty" leaves out what is
            not filled yet.
        temperature, learnable: see `InfoNce`; min_scale, max_scale: ALBEF's range, temperatures 0.001 to 0.5.
    """

    queue_size: int = 65536
    decay: float = 0.995
    alpha: float = 0.4
    alpha_ramp: int = 0
    unimodal_weight: float = 0.0
    unimodal_alpha: float = 0.0
    queue_start: str = "random"
    temperature: float = 0.07
    learnable: bool = True
    min_scale: float = 2.0
    max_scale: float = 1000.0

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch, by the towers and by the momentum towers."""
        return (Clean(), Momentum(self.decay))

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: logit_scale, alpha, and the terms of the loss.

        Raises:
            UserError: the batch is larger than the queue.
        """
        own, followed = passes
        mask = own.batch.get("example_mask")
        scale = logit_scale(
            self,
            self.temperature,
            learnable=self.learnable,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
        )
        embeds, keys = (
            (p.outputs["image_embed"], p.outputs["text_embed"]) for p in (own, followed)
        )
        queues, queue_mask, steps = self._queues(keys, mask, train)
        ramp = jnp.minimum(1.0, steps / self.alpha_ramp) if self.alpha_ramp else 1.0
        loss, parts = loss_lib.momentum_contrast(
            embeds,
            keys,
            queues,
            scale,
            alpha=self.alpha * ramp,
            unimodal_weight=self.unimodal_weight,
            unimodal_alpha=self.unimodal_alpha * ramp,
            queue_mask=queue_mask,
            example_mask=mask,
        )
        return loss, {"logit_scale": scale, "alpha": jnp.asarray(self.alpha * ramp), **parts}

    def _queues(
        self, keys: tuple[Array, Array], mask: Array | None, train: bool
    ) -> tuple[tuple[Array, Array], Array | None, Array]:
        """Queues before this batch [Q,D], which entries are filled [Q], training steps so far."""
        require_choice(self.queue_start, ("random", "empty"), "momentum_contrast queue_start")
        empty = self.queue_start == "empty"

        def start(width: int) -> Array:
            shape = (self.queue_size, width)
            if empty:
                return jnp.zeros(shape, jnp.float32)
            return l2_normalize(jax.random.normal(self.make_rng("params"), shape))

        kept = [
            self.variable("queue", name, start, key.shape[-1])
            for name, key in zip(("image", "text"), keys, strict=True)
        ]
        position, filled, steps = (
            self.variable("queue", name, lambda: jnp.zeros([], jnp.int32))
            for name in ("position", "filled", "steps")
        )
        before = (kept[0].value, kept[1].value)
        queue_mask = jnp.arange(self.queue_size) < filled.value if empty else None
        count = steps.value
        if train and not self.is_initializing() and self.is_mutable_collection("queue"):
            steps.value = count + 1
            if self.queue_size:
                at, real = position.value, keys[0].shape[0] if mask is None else (mask > 0).sum()
                for variable, key in zip(kept, keys, strict=True):
                    variable.value, position.value = loss_lib.enqueue(
                        variable.value, at, key, example_mask=mask
                    )
                filled.value = jnp.minimum(filled.value + real, self.queue_size).astype(jnp.int32)
        return before, queue_mask, count
