"""Reads PyTorch checkpoints into our parameters through the models' own name tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

Rules = list[tuple[str, str, str]]


def _slash(path: Any) -> str:
    return "/".join(str(key.key) for key in path)


def convert(tree: Any, weights: dict[str, np.ndarray], rules: Rules, used: set[str]) -> Any:
    """`tree` (arrays or shapes) filled from `weights`; adds every key it takes to `used`."""

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = _slash(path)
        for pattern, template, transform in rules:
            match = re.fullmatch(pattern, name)
            if match:
                key = match.expand(template)
                used.add(key)
                value = np.asarray(weights[key], np.float32)
                if transform == "linear":
                    value = value.T
                elif transform == "conv":
                    value = value.transpose(2, 3, 1, 0)
                elif transform == "leading":
                    value = value.reshape(leaf.shape)
                assert value.shape == leaf.shape, (name, key, value.shape, leaf.shape)
                return value
        raise AssertionError(f"no rule for {name}")

    return jax.tree_util.tree_map_with_path(fill, tree)


@pytest.fixture
def from_torch(tmp_path) -> Callable[..., dict[str, Any]]:
    """`from_torch(torch_model, shapes, rules)`: our variables from the file that model saves.

    Fails if a parameter of ours has no rule or a weight of theirs is left over.
    """

    def load(model: Any, shapes: dict[str, Any], rules: Rules) -> dict[str, Any]:
        from safetensors.numpy import load_file

        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        used: set[str] = set()
        variables = {name: convert(tree, weights, rules, used) for name, tree in shapes.items()}
        left = {k for k in weights if k not in used and not k.endswith("num_batches_tracked")}
        assert not left, left
        return variables

    return load


@pytest.fixture
def randomise() -> Callable[[Any], Any]:
    """Gives a torch model random values everywhere, so that biases and norms are tested too."""

    def apply(model: Any) -> Any:
        import torch

        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in [*model.named_parameters(), *model.named_buffers()]:
                if value.dtype.is_floating_point:
                    noise = torch.randn(value.shape, generator=generator)
                    if name.endswith("running_var"):
                        value.copy_(1 + 0.3 * noise.abs())
                    elif value.ndim == 1:
                        value.copy_((1 if "weight" in name else 0) + 0.1 * noise)
                    else:
                        value.copy_(noise * (1.0 / value[0].numel()) ** 0.5)
        return model.eval()

    return apply


@pytest.fixture
def assert_same_gradient() -> Callable[[Any, Any], None]:
    """Compares two gradient trees leaf by leaf, relative to each leaf's largest entry.

    Leaves whose exact gradient is zero (key biases: softmax ignores them) hold rounding noise, so the
    scale of a leaf is at least a hundredth of the whole tree's.
    """

    def check(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
        floor = 0.01 * max(np.abs(x).max() for x in jax.tree.leaves(theirs))
        pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
        for (path, a), b in pairs:
            scale = max(np.abs(b).max(), floor)
            np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, err_msg=_slash(path))

    return check


@pytest.fixture
def fill() -> Callable[[Any], Any]:
    """`fill(shapes)`: random variables, biases and norms included, without compiling an initialiser."""

    def value(path: Any, leaf: Any) -> np.ndarray:
        name = _slash(path)
        noise = np.random.default_rng(len(name)).normal(size=leaf.shape).astype(np.float32)
        if name.endswith(("scale", "var")):
            return 1 + 0.1 * np.abs(noise)
        if name.endswith("kernel"):
            return noise / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return 0.1 * noise

    return lambda shapes: jax.tree_util.tree_map_with_path(value, shapes)
