"""Parameter names and layouts of PyTorch against ours, by rule tables, in both directions.

A table is a list of `(regex, template, transform)`, kept beside each model as `TORCH_RULES`: the regex
matches the whole slash path of one of our parameters, the template is the PyTorch key with the groups. Each
parameter must match exactly one rule, so a renamed layer cannot be left out silently.

Where PyTorch keeps several of our arrays in one tensor (query, key and value), the transform names the slice:
"linear:1/3" takes the second of three equal parts of the outputs, the last axis of our array, once the tensor
has our layout. Export puts the parts together again; all of them must be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError

Rule = tuple[str, str, str]

_SHOWN = 12  # lines of an error that lists parameters


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> `{"a/b/kernel": leaf}`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return nested


def to_torch(
    params: Mapping[str, Any], rules: Sequence[Rule], *, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Renames and lays out parameters for PyTorch.

    Args:
        params: nested dict of arrays.
        rules: see the module.
        prefix: put before each key, e.g. `"vision_model."`.

    Returns:
        Key -> contiguous float32 (or other, unchanged) array.

    Raises:
        UserError: a parameter no rule or several rules match, or two parameters with one key; all are listed.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    layouts: dict[str, tuple[str, int]] = {}
    flat = flatten(params)
    keys, problems = _match(flat, rules)
    for path, (key, transform) in keys.items():
        layout, index, count = _slice(transform)
        same = layouts.setdefault(key, (layout, count)) == (layout, count)
        if not same or index in parts.setdefault(key, {}):
            problems.append(f"{path}: key {prefix + key} is taken by another parameter")
            continue
        parts[key][index] = np.asarray(flat[path])
    _raise(problems, "cannot be named for PyTorch", "complete TORCH_RULES of the model")
    tensors: dict[str, np.ndarray] = {}
    for key, (layout, count) in layouts.items():
        pieces = [parts[key][index] for index in range(count)]
        value = pieces[0] if count == 1 else np.concatenate(pieces, axis=-1)
        tensors[prefix + key] = np.ascontiguousarray(_forward(value, layout))
    return tensors


def from_torch(
    tensors: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    rules: Sequence[Rule],
    *,
    prefix: str = "",
    ignore: Iterable[str] = (),
) -> dict[str, Any]:
    """Reads PyTorch weights into our parameters.

    Args:
        tensors: key -> array.
        like: nested dict of arrays or `ShapeDtypeStruct`s: what the model needs.
        rules: see the module.
        prefix: only keys that start with it count, e.g. `"bert."`.
        ignore: regexes (whole key, without the prefix) of keys that may be left over.

    Returns:
        Nested dict of NumPy arrays with the dtypes of `like`.

    Raises:
        UserError: a parameter without a tensor, a tensor of another shape, or one that is left over; all are
            listed with both shapes.
    """
    wanted = flatten(like)
    keys, problems = _match(wanted, rules)
    given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    found: dict[str, np.ndarray] = {}
    for path, (key, transform) in keys.items():
        shape = tuple(wanted[path].shape)
        if key not in given:
            problems.append(f"{path} {shape}: {prefix}{key} is missing")
            continue
        value = _backward(np.asarray(given[key]), transform, shape)
        if value.shape != shape:
            problems.append(
                f"{path} {shape}: {prefix}{key} is {tuple(given[key].shape)}, that is {value.shape}"
            )
            continue
        found[path] = np.ascontiguousarray(value).astype(wanted[path].dtype)
    used = {key for key, _ in keys.values()}
    patterns = [re.compile(pattern) for pattern in ignore]
    for key in sorted(set(given) - used):
        if not any(pattern.fullmatch(key) for pattern in patterns):
            problems.append(f"{prefix}{key} {tuple(given[key].shape)}: no parameter takes it")
    _raise(problems, "do not fit", "use the weights of the same architecture and size")
    return unflatten(found)


def match(flat: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, tuple[str, str]]:
    """Path -> (PyTorch key, transform) for every parameter.

    Raises:
        UserError: a parameter that no rule or several rules match; all are listed.
    """
    keys, problems = _match(flat, rules)
    _raise(problems, "cannot be named for PyTorch", "complete the rule table of the model")
    return keys


def _match(
    flat: Mapping[str, Any], rules: Sequence[Rule]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Path -> (PyTorch key, transform), and the problems: not exactly one rule, or missing slices."""
    compiled = [(re.compile(pattern), template, kind) for pattern, template, kind in rules]
    keys: dict[str, tuple[str, str]] = {}
    problems = []
    for path, leaf in flat.items():
        hits = [(m, t, k) for p, t, k in compiled if (m := p.fullmatch(path))]
        if len(hits) == 1:
            match, template, kind = hits[0]
            keys[path] = (match.expand(template), kind)
        else:
            count = "no rule" if not hits else f"{len(hits)} rules"
            problems.append(f"{path} {tuple(leaf.shape)}: {count}")
    missing: dict[str, set[int]] = {}
    for key, transform in keys.values():
        _, index, total = _slice(transform)
        missing.setdefault(key, set(range(total))).discard(index)
    for key, left in missing.items():
        if left:
            problems.append(f"{key}: no parameter for its slices {sorted(left)}")
    return keys, problems


def _slice(transform: str) -> tuple[str, int, int]:
    """Layout, part and number of parts of a transform: "linear:1/3" -> ("linear", 1, 3)."""
    layout, colon, part = transform.partition(":")
    if not colon:
        return layout, 0, 1
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"unknown slice {part!r} in transform {transform!r} of a rule table")
    return layout, int(index), int(count)


def _forward(value: np.ndarray, transform: str) -> np.ndarray:
    """Our layout -> PyTorch's."""
    if transform in ("copy", "embedding"):
        return value
    if transform == "linear":  # [in, out] -> [out, in]
        return value.T
    if transform == "conv":  # HWIO -> OIHW, with any number of spatial axes
        return np.moveaxis(value, (-1, -2), (0, 1))
    if transform == "leading":
        shape = list(value.shape)
        while len(shape) > 1 and shape[0] == 1:
            shape.pop(0)
        return value.reshape(shape)
    raise ValueError(f"unknown transform {transform!r} in a rule table")


def _backward(value: np.ndarray, transform: str, shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's layout -> ours; an array with the wrong number of axes comes back as it is.

    `shape` is that of our parameter, one slice if the transform names one.
    """
    layout, index, count = _slice(transform)
    if count > 1:
        whole = _backward(value, layout, (*shape[:-1], shape[-1] * count))
        if whole.shape[-1] % count:
            return whole
        return np.split(whole, count, axis=-1)[index]
    if transform == "linear" and value.ndim == 2:
        return value.T
    if transform == "conv" and value.ndim == len(shape) > 2:
        return np.moveaxis(value, (0, 1), (-1, -2))
    if transform == "leading" and shape[-value.ndim :] == value.shape:
        return value.reshape(shape)
    return value


def _raise(problems: list[str], what: str, remedy: str) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "\n  ".join(problems[:_SHOWN])
        raise UserError(f"{len(problems)} parameters {what}; {remedy}:\n  {lines}{more}")
