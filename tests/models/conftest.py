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
                    value = np.moveaxis(value, (0, 1), (-1, -2))
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
