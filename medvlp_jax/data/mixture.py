"""Several datasets read as one: their examples one after the other, with the labels of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data.source import Source
from medvlp_jax.errors import UserError

_MISSING = -2
_IDS = ("subject_id", "study_id", "prior_study_id")


class Mixture:
    """Examples of several sources behind each other.

    Labels are joined by name, in the order of first occurrence; what a dataset does not label is stored
    as missing (-2). Patient and study ids get the name of their dataset, so that patient "1" of one is not
    patient "1" of another.

    Attributes:
        name: names of the datasets, joined by "+".
        split: TFDS split, as asked for.
        label_names: names of the K labels of all datasets.
        feature_names: features that at least one of them stores.
        starts: position of the first example of each source, and the number of all examples, [n + 1].
    """

    def __init__(self, sources: Sequence[Source]):
        self._sources = tuple(sources)
        self.name = "+".join(source.name for source in sources)
        self.split = sources[0].split
        names = dict.fromkeys(name for source in sources for name in source.label_names)
        self.label_names: tuple[str, ...] = tuple(names)
        self.feature_names = frozenset[str]().union(*(source.feature_names for source in sources))
        self.starts = np.cumsum([0, *(len(source) for source in sources)])
        self._places = [
            np.array([self.label_names.index(name) for name in source.label_names], np.int64)
            for source in sources
        ]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, source in enumerate(self._sources):
            for example in source:
                yield self._joined(example, number)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads several examples in one call.

        Raises:
            IndexError: an index outside [0, len).
        """
        wanted = np.asarray(indices, np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if outside.size:
            raise IndexError(f"example {outside[0]} of {self.name}: it has {len(self)}")
        owner = np.searchsorted(self.starts, wanted, side="right") - 1
        examples: list[dict[str, Any]] = [{} for _ in wanted]
        for number, source in enumerate(self._sources):
            rows = np.flatnonzero(owner == number)
            for row, example in zip(
                rows, source.read(wanted[rows] - self.starts[number]), strict=True
            ):
                examples[row] = self._joined(example, number)
        return examples

    def with_fields(self, fields: Sequence[str]) -> Mixture:
        """The same examples with other features decoded."""
        return Mixture([source.with_fields(fields) for source in self._sources])

    def _joined(self, example: Mapping[str, Any], number: int) -> dict[str, Any]:
        """One example of source `number` with the labels and ids of the mixture."""
        joined = dict(example)
        if "label" in example:
            label = np.full(len(self.label_names), _MISSING, np.int8)
            label[self._places[number]] = example["label"]
            joined["label"] = label
        for key in _IDS:
            if example.get(key):
                joined[key] = f"{self._sources[number].name}:{example[key]}"
        return joined


def row_counts(weights: Mapping[str, float], batch: int) -> tuple[int, ...]:
    """Rows of each dataset in every batch: its share, rounded so that they add up to the batch.

    Args:
        weights: dataset -> positive weight.
        batch: B over all processes.

    Raises:
        UserError: a dataset would get no row.
    """
    total = sum(weights.values())
    exact = np.array([weight / total * batch for weight in weights.values()])
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")  # largest remainder first
    counts[largest[: batch - counts.sum()]] += 1
    empty = [name for name, count in zip(weights, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"config key data.mixture: {empty[0]} has {weights[empty[0]] / total:.3g} of the weight, less "
            f"than one row of a batch of {batch}: raise its weight or data.global_batch_size"
        )
    return tuple(int(count) for count in counts)
