"""From the bytes of a stored record to the values of chosen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

_ENCODED = ("image", "mask", "slices")
"""Features that stay encoded bytes until the rows of a batch are made."""


class RecordDecoder:
    """Decodes the named features of a record; names that the dataset lacks are ignored.

    Images and texts and rows of integers, which is all that training reads, are taken from the record
    directly, at an eighth of the time that TFDS needs for the same values; TFDS decodes the others.
    """

    def __init__(self, features: Mapping[str, Any], fields: Sequence[str]):
        """Args: features of the dataset, names of those that are wanted."""
        chosen = {name: features[name] for name in fields if name in features}
        self._bytes = [k for k in ("image", "mask") if type(chosen.get(k)) is tfds.features.Image]
        self._texts = [k for k, f in chosen.items() if type(f) is tfds.features.Text]
        self._integers = {
            k: f.get_tensor_info().np_dtype for k, f in chosen.items() if _is_row_of_integers(f)
        }
        direct = {*self._bytes, *self._texts, *self._integers}
        others = {k: f for k, f in chosen.items() if k not in direct}
        if "slices" in others:
            # Stored as a list of byte strings, like texts; TFDS has no decoder that skips a list of images.
            others["slices"] = tfds.features.Sequence(tfds.features.Text())
        self._others = tfds.features.FeaturesDict(others) if others else None

    def __call__(self, record: bytes) -> dict[str, Any]:
        """Features of one record: `image`, `mask` and `slices` as encoded bytes, texts as `str`."""
        proto: Any = tf_example_pb2
        stored = proto.Example.FromString(record).features.feature
        example: dict[str, Any] = {}
        for name in self._bytes:
            example[name] = stored[name].bytes_list.value[0]
        for name in self._texts:
            example[name] = stored[name].bytes_list.value[0].decode("utf-8")
        for name, dtype in self._integers.items():
            example[name] = np.array(stored[name].int64_list.value, dtype)
        if self._others is not None:
            rest: Any = self._others.deserialize_example_np(record)
            example.update(_plain(rest))
        return example


def _is_row_of_integers(feature: Any) -> bool:
    """A plain tensor with one axis, e.g. labels."""
    if type(feature) is not tfds.features.Tensor:
        return False
    info: Any = feature.get_tensor_info()
    return len(info.shape) == 1 and np.dtype(info.np_dtype).kind == "i"


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
    """TFDS hands out text as bytes; images stay bytes."""
    plain: dict[str, Any] = {}
    for key, value in example.items():
        if key in _ENCODED:
            plain[key] = list(value) if key == "slices" else value
        elif isinstance(value, bytes):
            plain[key] = value.decode("utf-8")
        elif isinstance(value, dict):
            plain[key] = _plain(value)
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            plain[key] = [v.decode("utf-8") for v in value]
        else:
            plain[key] = value
    return plain
