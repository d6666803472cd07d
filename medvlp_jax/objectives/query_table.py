"""Embeddings of queries that a text tower made beforehand: read once, then part of the training state."""

from __future__ import annotations

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError


def query_table(objective: nn.Module, name: str, path: str, rows: int) -> jax.Array:
    """Table [rows, E] of an objective, without gradient; to be called inside its `__call__`.

    The file is read when the variables are made; they then keep it, in the collection `constants`, so that a
    resumed or evaluated run does not need the file.

    Args:
        objective: owner of the variable `name`.
        path: .npy file.
        rows: how many there must be.

    Raises:
        UserError: no such file, or an array of another shape.
    """

    def read() -> jax.Array:
        file = pathlib.Path(path)
        if not file.is_file():
            raise UserError(f"{file} does not exist: expected embeddings [{rows}, E] as .npy")
        table = np.load(file, allow_pickle=False)
        if table.ndim != 2 or table.shape[0] != rows:
            raise UserError(
                f"{file} holds an array of shape {table.shape}, but one row for each of {rows} names is "
                "needed, in the order of the data set"
            )
        return jnp.asarray(table, jnp.float32)

    return jax.lax.stop_gradient(objective.variable("constants", name, read).value)
