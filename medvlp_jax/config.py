"""Configs: loading `configs/x.py:arg`, overriding single keys, durations, comparison."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from medvlp_jax.errors import UserError

Config = Any
"""A `ConfigDict`. Its attributes are typed as a union of everything, which no checker can follow."""


def parse_arg(arg: str, **defaults: Any) -> Config:
    """Parses the text after the colon of `--config file.py:arg`.

    `"smoke,data=covid"` with defaults `smoke=False, data="synthetic_cxr"` gives a ConfigDict with
    `smoke=True, data="covid"`. A bare word sets a flag; every word must be one of the defaults.

    Raises:
        UserError: unknown word, or a value that does not parse as the default's type.
    """
    hidden = [key for key in defaults if hasattr(ConfigDict, key)]
    if hidden:
        raise ValueError(f"argument {hidden[0]!r} would read as ConfigDict.{hidden[0]}: rename it")
    values = ConfigDict(defaults)
    for item in filter(None, (part.strip() for part in (arg or "").split(","))):
        key, has_value, text = item.partition("=")
        if key not in defaults:
            raise UserError(
                f"config argument {key!r} is unknown: this config takes {', '.join(sorted(defaults))}"
            )
        values[key] = _parse_value(key, text, defaults[key]) if has_value else True
    return values


def load_config(spec: str, overrides: Iterable[str] = ()) -> Config:
    """Loads `path/to/config.py[:arg]` and applies `a.b=value` overrides.

    Args:
        spec: file with a function `get_config(arg="")`, optionally followed by `:arg`.
        overrides: strings `key.path=value` (what follows `--config.` on the command line).

    Returns:
        A locked ConfigDict: writing a key that does not exist raises.

    Raises:
        UserError: missing file, no `get_config`, unknown key or value of a wrong type.
    """
    path, _, arg = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        known = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"config file {path} does not exist{hint} `configs` lists them.")
    module_spec = importlib.util.spec_from_file_location(f"medvlp_config_{file.stem}", file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(arg=''): it is not a config file")
    config = module.get_config(arg)
    config.name = file.stem
    config.spec = spec
    config.lock()
    for override in overrides:
        apply_override(config, override)
    return config


def apply_override(config: Config, text: str) -> None:
    """Applies one `a.b.c=value`; the value is parsed as the type of the present one.

    Raises:
        UserError: the key does not exist (names the nearest keys) or the value does not parse.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"override {text!r} has no value: write --config.{key}=VALUE")
    parent, leaf = _descend(config, key)
    current = parent[leaf]
    if isinstance(current, ConfigDict):
        raise UserError(
            f"config key {key} is a group; override one of its keys: "
            f"{', '.join(f'{key}.{k}' for k in sorted(current))}"
        )
    with parent.ignore_type():
        parent[leaf] = _parse_value(key, value, current)


def _descend(config: Config, key: str) -> tuple[Config, str]:
    """Returns the dict that holds the leaf of `key` and the leaf's name."""
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or part not in node:
            known = [k for k, _ in flatten(config)]
            siblings = [k for k in known if depth and k.startswith(".".join(parts[:depth]) + ".")]
            near = difflib.get_close_matches(key, known, n=3)
            near += [k for k in siblings if k not in near][:12]
            raise UserError(
                f"config key {key} does not exist; near it: {', '.join(near) or 'none'}"
            )
        if depth < len(parts) - 1:
            node = node[part]
    return node, parts[-1]


def _parse_value(key: str, text: str, current: Any) -> Any:
    """Parses `text` as the type of `current` (None and tuples: any Python literal, else text)."""
    kind = type(current)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is str:
            return text
    except (ValueError, KeyError):
        raise UserError(
            f"config key {key}={text!r}: expected {kind.__name__}, as in the default {current!r}"
        ) from None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, tuple) and not isinstance(value, tuple | list):
        raise UserError(f"config key {key}={text!r}: expected a tuple like {current!r}")
    return tuple(value) if isinstance(current, tuple) else value


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted key, leaf value)` in sorted order."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping | ConfigDict) and len(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: Config) -> str:
    """JSON text of a config; the inverse of `from_json` for plain values."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.dumps(plain, indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote (lists become tuples, so that comparisons hold)."""
    return ConfigDict(_tuples(json.loads(text)))


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def differences(old: Config, new: Config) -> list[str]:
    """Readable list of keys whose values differ, `key: old -> new`."""
    a = dict(flatten(from_json(to_json(old))))
    b = dict(flatten(from_json(to_json(new))))
    missing = "(missing)"
    return [
        f"{key}: {a.get(key, missing)!r} -> {b.get(key, missing)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing)
    ]


def duration(text: str | int, *, steps_per_epoch: int, total: int | None = None, key: str) -> int:
    """Turns `"500"` (steps), `"3ep"` (epochs) or `"10%"` (of `total`) into a number of steps.

    Raises:
        UserError: names the config key when the text is none of the three.
    """
    value = str(text).strip()
    try:
        if value.endswith("ep"):
            return round(float(value[:-2]) * steps_per_epoch)
        if value.endswith("%"):
            if total is None:
                raise UserError(
                    f"config key {key}={value!r}: a share needs a total; use steps or 'ep'"
                )
            return round(float(value[:-1]) / 100 * total)
        return int(value)
    except ValueError:
        raise UserError(
            f"config key {key}={value!r}: expected steps ('500'), epochs ('3ep') or a share ('10%')"
        ) from None
