"""Random access to the stored examples of one split of a built dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.paths import dataset_folder
from medvlp_jax.data.records import RecordDecoder
from medvlp_jax.errors import UserError


class Examples(Protocol):
    """What the pipeline reads from: a `Source`, or a `mixture.Mixture` of several."""

    name: str
    split: str
    label_names: tuple[str, ...]
    feature_names: frozenset[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]: ...

    def with_fields(self, fields: Sequence[str]) -> Examples: ...


class Source:
    """Random access to the examples of one split of a built dataset.

    `source[i]` is a dict of the stored features: `image`, `mask` and `slices` as encoded bytes, strings as
    `str`, numbers as numpy. `source[[i, j]]`-style batched reading is `source.read(indices)`.

    Attributes:
        name: `name` or `name/config`.
        split: TFDS split, as asked for.
        label_names: names of the K labels; empty when the dataset has none.
        feature_names: all stored features, also those that are not decoded.
        metadata: what the builder recorded (counts of dropped rows, split hash, options ...).
        folder: where the dataset lies.
    """

    def __init__(self, reader: Any, info: Any, split: str, length: int, fields: Sequence[str]):
        config = info.config_name
        self.name: str = f"{info.name}/{config}" if config else info.name
        self.split = split
        # Not dict(metadata): TFDS loads it lazily in `keys`, which dict() does not call.
        self.metadata: dict[str, Any] = {k: info.metadata[k] for k in (info.metadata or {}).keys()}  # noqa: SIM118
        self.label_names: tuple[str, ...] = tuple(self.metadata.get("label_names", ()))
        self.feature_names: frozenset[str] = frozenset(info.features)
        self.folder: str = str(info.data_dir)
        self._reader = reader
        self._info = info
        self._decode = RecordDecoder(info.features, fields)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), 64):
            yield from self.read(range(start, min(start + 64, len(self))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads several examples in one call.

        Raises:
            IndexError: an index outside [0, len).
        """
        wanted = [int(i) for i in indices]
        for i in wanted:
            if not 0 <= i < self._length:
                raise IndexError(f"example {i} of {self.name} {self.split}: it has {self._length}")
        if "://" in self.folder:
            records = self._reader.__getitems__(
                wanted
            )  # a thread per file hides the network's delay
        else:
            records = [
                self._reader[i] for i in wanted
            ]  # a third of the time, without starting threads
        return [self._decode(record) for record in records]

    def with_fields(self, fields: Sequence[str]) -> Source:
        """The same examples with other features decoded; names that the dataset lacks are ignored."""
        return Source(self._reader, self._info, self.split, self._length, fields)


def open_source(
    dataset: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    fields: Sequence[str] | None = None,
    max_examples: int | None = None,
) -> Source:
    """Opens one split of a built dataset for random access.

    Args:
        dataset: `name`, `name/config` or `name/config/version`; see `paths.dataset_folder`.
        split: split name or TFDS slice, e.g. `"train[:10%]"`.
        data_dir: data directory; None = `TFDS_DATA_DIR`, else `./data`.
        fields: features to decode; None = all. Names that the dataset lacks are ignored.
        max_examples: only the first so many examples.

    Raises:
        UserError: dataset not built, damaged, or without that split.
    """
    folder = dataset_folder(dataset, data_dir)
    try:
        builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # json, protobuf and TFDS errors of a damaged folder
        raise UserError(f"{folder} is not a readable dataset ({error}); build it again") from error
    known = sorted(builder.info.splits)
    base = split.partition("[")[0]
    if base not in known:
        raise UserError(f"dataset {dataset} has no split {base!r}; it has {', '.join(known)}")
    try:
        reader = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        length = len(reader)
    except Exception as error:
        raise UserError(
            f"split {split!r} of {dataset} cannot be read ({error}); check the slice, or build the "
            "dataset again"
        ) from error
    if max_examples is not None:
        length = min(length, max_examples)
    names = sorted(builder.info.features) if fields is None else fields
    return Source(reader, builder.info, split, length, names)


def columns(source: Examples, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Some features of all examples, in order; None where an example lacks one.

    Reads the whole split once, so it is for small features only.
    """
    found: dict[str, list[Any]] = {field: [] for field in fields}
    for example in source.with_fields(fields):
        for field in fields:
            found[field].append(example.get(field))
    return found
