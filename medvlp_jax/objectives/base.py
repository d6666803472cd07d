"""What an objective is: the corruptions it wants to see, its own heads, one loss."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from medvlp_jax.objectives.corruption import Clean, Corruption
from medvlp_jax.types import Array, Batch, Metrics, Outputs


class Pass(NamedTuple):
    """One forward pass: the (corrupted) batch and what the model returned for it."""

    batch: Batch
    outputs: Outputs


class Objective(nn.Module):
    """Base class of all objectives.

    A subclass declares in `corruptions` which corrupted versions of the batch it needs; the system runs
    the model once per *distinct* corruption and hands the passes back in the declared order. Objectives
    never call the model themselves, so any mix of objectives shares forward passes.
    """

    def corruptions(self) -> tuple[Corruption, ...]:
        """Corruptions this objective needs, in the order in which `__call__` receives the passes."""
        return (Clean(),)

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """Returns the scalar float32 loss and a flat dict of scalar metrics.

        Args:
            passes: one `Pass` per entry of `corruptions()`.
            train: whether dropout and batch statistics are in training mode.
        """
        raise TypeError(f"{type(self).__name__} must define __call__(passes, *, train)")
