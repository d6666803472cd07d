"""Procedural chest radiographs with reports and the whole truth.

The builder class is loaded on first use only: the renderer, which also runs in worker processes, and the
label names must be importable without TFDS.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "SyntheticCxr":
        from tfds_builders.synthetic_cxr.synthetic_cxr import SyntheticCxr

        return SyntheticCxr
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
