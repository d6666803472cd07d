"""Where each parameter lives: path-regex rules, first match wins.

A rule is `(regex, spec)`. The regex is searched in the slash path of the parameter
(`model/text_encoder/layer_0/query/kernel`). `spec` is one of

* a tuple with one entry per axis: a mesh axis, a tuple of mesh axes, or None (whole);
* `"fsdp"`: split the largest axis that divides over the `fsdp` mesh axis;
* `"replicate"`.

A mesh axis that does not divide its array axis is dropped for that parameter (a vocabulary of 30,522
does not split into 8), which `placement_table` shows. A parameter that no rule matches, and a rule that
matches nothing, are errors: both are typing errors in practice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvlp_jax.errors import UserError

Rule = tuple[str, Any]

DEFAULT_RULES: tuple[Rule, ...] = (
    # Attention and MLP: column-parallel in, row-parallel out; one all-reduce per half block.
    (r"(query|key|value|fc1|intermediate)/kernel$", ("fsdp", "tensor")),
    (r"(out|fc2|output)/kernel$", ("tensor", "fsdp")),
    # Vocabulary axis, never the feature axis: that triggers a rematerialisation of the whole table.
    (r"word_embed(dings?)?/embedding$", (("fsdp", "tensor"), None)),
    (r"kernel$", "fsdp"),
    (r"", "replicate"),
)


def path_string(path: Sequence[Any]) -> str:
    """Slash path of a jax key path, `model/text_encoder/.../kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flat_paths(tree: Any) -> list[tuple[str, Any]]:
    """`(slash path, leaf)` of every leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_string(path), leaf) for path, leaf in leaves]


def resolve_spec(spec: Any, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """PartitionSpec of one array under one rule's `spec`."""
    if spec == "replicate" or not shape:
        return PartitionSpec()
    if spec == "fsdp":
        size = mesh.shape["fsdp"]
        fitting = [(n, axis) for axis, n in enumerate(shape) if n % size == 0]
        if size == 1 or not fitting:
            return PartitionSpec()
        axis = max(fitting, key=lambda item: (item[0], -item[1]))[1]
        return PartitionSpec(*("fsdp" if a == axis else None for a in range(len(shape))))
    # Leading axes that the rule does not know (stacked layers, convolution windows) stay whole.
    entries = (None,) * (len(shape) - len(spec)) + tuple(spec)[-len(shape) :]
    return PartitionSpec(
        *(_fitting(entry, n, mesh) for entry, n in zip(entries, shape, strict=True))
    )


def _fitting(entry: Any, size: int, mesh: Mesh) -> Any:
    """The mesh axes of `entry` that divide an array axis of `size`."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    kept: list[str] = []
    for name in names:
        if name not in mesh.shape:
            raise UserError(
                f"sharding rule names mesh axis {name!r}; the mesh has {mesh.axis_names}"
            )
        if size % (mesh.shape[name] * math.prod(mesh.shape[k] for k in kept)) == 0:
            kept.append(name)
    return None if not kept else kept[0] if len(kept) == 1 else tuple(kept)


def parameter_specs(
    params: Any, mesh: Mesh, rules: Sequence[Rule] = ()
) -> dict[str, PartitionSpec]:
    """Slash path -> PartitionSpec for every parameter.

    Raises:
        UserError: a parameter without a rule, or a user's rule without a parameter.
    """
    own = bool(rules)
    rules = tuple(rules) or DEFAULT_RULES
    used = [False] * len(rules)
    specs: dict[str, PartitionSpec] = {}
    for path, leaf in flat_paths(params):
        for index, (pattern, spec) in enumerate(rules):
            if re.search(pattern, path):
                used[index] = True
                specs[path] = resolve_spec(spec, tuple(leaf.shape), mesh)
                break
        else:
            raise UserError(
                f"no sharding rule matches parameter {path}; end config.mesh.rules with ('', 'replicate')"
            )
    unused = [pattern for (pattern, _), hit in zip(rules, used, strict=True) if not hit]
    if own and unused:
        raise UserError(f"sharding rules that match no parameter: {unused}; remove or correct them")
    return specs


def state_shardings(state: Any, params: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> Any:
    """NamedSharding for every leaf of a train state (shapes from `jax.eval_shape`).

    Optimiser moments and averages carry the parameter's path as the end of their own path and its
    shape, and follow it; everything else is replicated.
    """
    specs = parameter_specs(params, mesh, rules)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_paths(params)}

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        parts = path_string(path).split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if tail in specs and shapes[tail] == tuple(leaf.shape):
                return NamedSharding(mesh, specs[tail])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def placement_table(params: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> str:
    """Readable table: path, shape, placement, bytes per device."""
    specs = parameter_specs(params, mesh, rules)
    lines = [f"{'parameter':<72} {'shape':<20} {'placement':<28} {'bytes/device':>12}"]
    total = 0
    for path, leaf in flat_paths(params):
        local = NamedSharding(mesh, specs[path]).shard_shape(tuple(leaf.shape))
        size = math.prod(local) * jnp.dtype(leaf.dtype).itemsize
        total += size
        lines.append(f"{path:<72} {leaf.shape!s:<20} {specs[path]!s:<28} {size:>12,}")
    lines.append(f"{'total':<72} {'':<20} {'':<28} {total:>12,}")
    return "\n".join(lines)
