"""Low-rank adapters (LoRA, arXiv 2106.09685) for any tower: functions of parameter trees, no new modules.

A kernel W [in, out] becomes W + scale * a @ b with a [in, rank] and b [rank, out] (eq. 3 of the paper, where
the scale is alpha / rank). The merged tree goes into `apply` in place of the original one and gradients with
respect to the adapters flow through `merge`, so nothing else has to know about them. Merging once after
training gives plain weights that cost nothing extra. The paper's dropout on the adapters' input cannot be
written this way and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import Array

Adapters = dict[str, dict[str, Array]]
"""Slash path of a kernel -> {"a": [in, rank], "b": [rank, out]}, float32."""

_SHOWN = 3  # paths in an error message


def targets(params: Mapping[str, Any], regex: str) -> dict[str, tuple[int, int]]:
    """The kernels that a regex chooses.

    Args:
        params: nested dict of arrays or `ShapeDtypeStruct`s.
        regex: searched in the slash path of each `kernel`, e.g. `"text_encoder/.*(query|value)/kernel"`;
            biases, norms and embedding tables are never chosen.

    Returns:
        Slash path -> shape (in, out), in the order of the tree.

    Raises:
        UserError: no kernel matches, or one that does is not a matrix (a convolution).
    """
    kernels = {
        path: tuple(leaf.shape)
        for path, leaf in _flatten(params).items()
        if path.rpartition("/")[2] == "kernel"
    }
    chosen = {path: shape for path, shape in kernels.items() if re.search(regex, path)}
    if not chosen:
        raise UserError(
            f"the LoRA regex {regex!r} matches no kernel; paths look like "
            f"{', '.join(list(kernels)[:_SHOWN])} ..."
        )
    wrong = [f"{path} {shape}" for path, shape in chosen.items() if len(shape) != 2]
    if wrong:
        raise UserError(
            f"LoRA adapts matrices only, but the regex {regex!r} also matches {', '.join(wrong[:_SHOWN])}; "
            "make it match linear layers alone"
        )
    return chosen


def init(key: Array, params: Mapping[str, Any], regex: str, *, rank: int) -> Adapters:
    """New adapters for the kernels that `targets` finds; they change nothing yet.

    Args:
        key: jax random key; params, regex: see `targets`.
        rank: 1 to the smaller side of every chosen kernel.

    Returns:
        `a` uniform within +-1/sqrt(in) (the released code's initialisation), `b` zero.

    Raises:
        UserError: see `targets`; a rank outside that range.
    """
    chosen = targets(params, regex)
    draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    adapters: Adapters = {}
    for path_key, (path, shape) in zip(
        jax.random.split(key, len(chosen)), chosen.items(), strict=True
    ):
        if not 1 <= rank <= min(shape):
            raise UserError(
                f"LoRA rank={rank} does not suit {path} of shape {shape}; choose 1 to {min(shape)}"
            )
        adapters[path] = {
            "a": draw(path_key, (shape[0], rank), jnp.float32),
            "b": jnp.zeros((rank, shape[1]), jnp.float32),
        }
    return adapters


def merge(params: Mapping[str, Any], adapters: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Parameters with W + scale * a @ b in place of each adapted kernel W; other leaves are passed on.

    Args:
        params: nested dict of arrays, as given to `init`.
        adapters: from `init`; scale: alpha / rank.

    Raises:
        UserError: an adapter whose kernel the tree lacks or whose shape does not fit it.
    """
    flat = _flatten(params)
    for path, adapter in adapters.items():
        a, b = adapter["a"], adapter["b"]
        if path not in flat or flat[path].shape != (a.shape[0], b.shape[1]):
            have = flat[path].shape if path in flat else "missing"
            raise UserError(
                f"the LoRA adapter of {path} is for a kernel of shape {(a.shape[0], b.shape[1])}, which is "
                f"{have} here; use the parameters that the adapters were made for"
            )
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[path] = (flat[path] + scale * update).astype(flat[path].dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def merged(params: Mapping[str, Any], scale: float) -> Mapping[str, Any]:
    """The parameters of a training state with those below `lora` merged into those below `model`."""
    if "lora" not in params:
        return params
    rest = {name: tree for name, tree in params.items() if name != "lora"}
    return {**rest, "model": merge(params["model"], params["lora"], scale)}


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flax.traverse_util.flatten_dict(params, sep="/"))
