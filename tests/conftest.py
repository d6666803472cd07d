"""Shared fixtures. Without the first lines the suite would need an accelerator and one device only."""

from __future__ import annotations

import os
import pathlib
import runpy
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # The suite compiles thousands of tiny programs and runs each of them a few times.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    ).strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _shared(variable: str, default: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(
            f"{variable} is not set and {folder} does not exist: real files are not shipped"
        )
    return folder.resolve()


@pytest.fixture(scope="session")
def reference_dir() -> pathlib.Path:
    """Folder of reference inputs, outputs and gradients (`MEDVLP_REFERENCE`)."""
    return _shared("MEDVLP_REFERENCE", "reference")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder of real images and texts (`MEDVLP_DATA`)."""
    return _shared("MEDVLP_DATA", "data")


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture
def randomise() -> Callable[[Any], Any]:
    """Gives a torch model random values everywhere, so that biases and norms are tested too."""

    return runpy.run_path(str(ROOT / "tests" / "random_weights.py"))["randomise"]


@pytest.fixture
def fill() -> Callable[[Any], Any]:
    """`fill(shapes)`: random variables, biases and norms included, without compiling an initialiser."""

    def value(path: Any, leaf: Any) -> np.ndarray:
        name = "/".join(str(key.key) for key in path)
        noise = np.random.default_rng(len(name)).normal(size=leaf.shape).astype(np.float32)
        if name.endswith(("scale", "var")):
            return 1 + 0.1 * np.abs(noise)
        if name.endswith("kernel"):
            return noise / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return 0.1 * noise

    return lambda shapes: jax.tree_util.tree_map_with_path(value, shapes)
