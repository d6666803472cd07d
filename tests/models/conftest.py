"""Reads PyTorch checkpoints into our parameters through the models' own name tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


@pytest.fixture
def assert_frozen_statistics() -> Callable[[Any, Any, Any], None]:
    """`(encoder, variables, image)`: a bfloat16 encoder with `frozen_bn` keeps float32 variables, computes in
    bfloat16 and leaves its statistics alone in training."""

    def check(encoder: Any, variables: Any, image: Any) -> None:
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        run = jax.jit(lambda v: encoder.apply(v, image, train=True, mutable=["batch_stats"]))
        out, updates = run(variables)
        assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("bfloat16")}
        pairs = (jax.tree.leaves(x["batch_stats"]) for x in (variables, updates))
        for a, b in zip(*pairs, strict=True):
            np.testing.assert_array_equal(a, b)

    return check


@pytest.fixture
def assert_same_when_rematerialised() -> Callable[..., None]:
    """`(encoder, variables, image)`: the same training loss, statistics and gradient with `remat="full"`."""

    def check(
        plain: Any, variables: Any, image: Any, *, gradient: bool = True, atol: float = 1e-4
    ) -> None:
        def run(encoder: Any) -> list[Any]:
            def loss(params: Any) -> Any:
                out, updates = encoder.apply(
                    {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
                )
                return jnp.sum(out["pooled"] ** 2), updates

            results: Any = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
            return jax.tree.leaves(results if gradient else results[0])

        for a, b in zip(run(plain), run(plain.clone(remat="full")), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)

    return check
