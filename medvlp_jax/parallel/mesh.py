"""The device mesh and how batches are laid out on it.

Axes: `data` (batch only), `fsdp` (batch, and parameters are split over it), `tensor` (parameters only).
The batch is split over data x fsdp, so its global size must divide by that product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medvlp_jax.errors import UserError
from medvlp_jax.types import Batch

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh `data x fsdp x tensor`.

    Args:
        sizes: devices per axis; one of them may be -1 and takes what is left.
        devices: default all devices of all processes.

    Raises:
        UserError: the product does not equal the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = [int(sizes.get(axis, 1)) for axis in AXES]
    if wanted.count(-1) > 1 or any(n == 0 or n < -1 for n in wanted):
        raise UserError(f"config mesh {dict(sizes)}: sizes are positive, at most one may be -1")
    if -1 in wanted:
        known = math.prod(n for n in wanted if n != -1)
        if len(devices) % known:
            raise UserError(
                f"config mesh {dict(sizes)}: {len(devices)} devices do not divide by {known}"
            )
        wanted[wanted.index(-1)] = len(devices) // known
    if math.prod(wanted) != len(devices):
        raise UserError(
            f"config mesh {dict(zip(AXES, wanted, strict=True))} needs {math.prod(wanted)} devices, "
            f"there are {len(devices)}; set one axis to -1 or change the product"
        )
    # Auto axes: the compiler places intermediates. make_mesh's own default is Explicit.
    return jax.make_mesh(
        tuple(wanted), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Number of pieces into which the batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(global_batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises UserError when a batch does not divide over the mesh (or over the processes)."""
    pieces = math.lcm(batch_devices(mesh), jax.process_count())
    if global_batch_size % pieces:
        lower = global_batch_size // pieces * pieces
        raise UserError(
            f"config key {key}={global_batch_size} does not divide over data x fsdp = "
            f"{batch_devices(mesh)} devices in {jax.process_count()} processes; use "
            f"{' or '.join(str(n) for n in (lower, lower + pieces) if n)}"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Makes global arrays from each process's local rows (host arrays, leading axis = local batch)."""
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for key, value in batch.items()
    }
