"""`data check`: what a reviewer would ask about a built dataset."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data import pipeline
from medvlp_jax.data.reports import normalise_for_id
from medvlp_jax.data.spec import load_spec
from medvlp_jax.data.transforms import decode
from medvlp_jax.errors import UserError

_HASH_SIDE = 8


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        dataset: name.
        counts: split -> examples.
        problems: findings that make results wrong (leaks, wrong counts).
        notes: findings worth knowing (repeated texts, duplicate images in one split).
        prevalence: label -> split -> (positive, known).
    """

    dataset: str
    counts: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    prevalence: dict[str, dict[str, tuple[int, int]]]

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.dataset}: " + ", ".join(f"{k} {v}" for k, v in self.counts.items())]
        if self.prevalence:
            splits = list(self.counts)
            lines.append(f"{'label':<32}" + "".join(f"{s:>18}" for s in splits))
            for label, found in self.prevalence.items():
                cells = (f"{found[s][0]}/{found[s][1]}" for s in splits)
                lines.append(f"{label:<32}" + "".join(f"{cell:>18}" for cell in cells))
        lines += [f"PROBLEM: {text}" for text in self.problems]
        lines += [f"note: {text}" for text in self.notes]
        lines.append("no problems found" if self.ok else f"{len(self.problems)} problems found")
        return "\n".join(lines)


@dataclasses.dataclass
class _Seen:
    """Where each patient, image and text occurs: value -> split -> number."""

    patients: dict[str, Counter] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    images: dict[Any, Counter] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    texts: dict[str, Counter] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    blank: Counter = dataclasses.field(default_factory=Counter)


def check_dataset(name: str, data_dir: str | None = None) -> CheckReport:
    """Reads every example once and compares the splits.

    Args:
        name: built dataset.
        data_dir: see `data.paths.data_root`.

    Raises:
        UserError: not built.
    """
    spec = load_spec(name)
    sources = _open_splits(name, spec.splits, data_dir)
    seen, prevalence = _Seen(), {}
    for split, source in sources.items():
        labels = [_note(example, split, seen) for example in source]
        for k, label in enumerate(source.label_names):
            column = np.asarray([row[k] for row in labels])
            found = prevalence.setdefault(label, dict.fromkeys(sources, (0, 0)))
            found[split] = (int((column == 1).sum()), int((column != -2).sum()))
    counts = {split: len(source) for split, source in sources.items()}
    problems = _leaks(seen.patients, "patients") + _leaks(seen.images, "images")
    metadata = next(iter(sources.values())).metadata
    problems += _recorded_counts(metadata, counts)
    for split, source in sources.items():
        if spec.label_names and source.label_names != spec.label_names:
            problems.append(
                f"{split} has labels {', '.join(source.label_names)}, expected "
                f"{', '.join(spec.label_names)}"
            )
    problems += _published_counts(
        metadata.get("expected_counts", spec.expected_counts),
        {**counts, "rows": metadata.get("rows", 0)},
    )
    return CheckReport(
        dataset=name,
        counts=counts,
        problems=tuple(problems),
        notes=tuple(_notes(seen, counts)),
        prevalence=prevalence,
    )


def _open_splits(
    name: str, splits: Iterable[str], data_dir: str | None
) -> dict[str, pipeline.Source]:
    sources = {}
    missing = None
    for split in splits:
        try:
            sources[split] = pipeline.open_source(name, split, data_dir)
        except UserError as error:
            missing = error
    if not sources and missing is not None:
        raise missing
    return sources


def _note(example: dict[str, Any], split: str, seen: _Seen) -> np.ndarray:
    """Notes where patient, image and text of one example occur; returns its labels."""
    if example.get("subject_id"):
        seen.patients[example["subject_id"]][split] += 1
    seen.images[image_hash(example["image"])][split] += 1
    text = normalise_for_id(example.get("text", ""))
    if text:
        seen.texts[text][split] += 1
    else:
        seen.blank[split] += 1
    return np.asarray(example.get("label", np.zeros(0, np.int8)))


def image_hash(data: bytes) -> bytes:
    """Difference hash of an encoded image: equal for copies, also recompressed or resized ones.

    128 bits: horizontal and vertical differences of an 8 x 8 reduction, and the mean grey value, because
    all-black images would otherwise match everything flat.
    """
    grey = decode(data, 1)[:, :, 0]
    small = cv2.resize(grey, (_HASH_SIDE + 1, _HASH_SIDE + 1), interpolation=cv2.INTER_AREA)
    small = small.astype(np.int16)
    across = (small[:-1, 1:] > small[:-1, :-1]).ravel()
    down = (small[1:, :-1] > small[:-1, :-1]).ravel()
    return np.packbits(np.concatenate([across, down])).tobytes() + bytes([int(grey.mean()) // 16])


def _leaks(places: dict[Any, Counter], what: str) -> list[str]:
    """Values that occur in more than one split."""
    shared = {value: splits for value, splits in places.items() if len(splits) > 1}
    if not shared:
        return []
    pairs = Counter(" and ".join(sorted(splits)) for splits in shared.values())
    return [f"{count} {what} occur in both {pair}" for pair, count in sorted(pairs.items())]


def _recorded_counts(metadata: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """Rows of the user's table against what the builder says it dropped and what is there."""
    if "rows" not in metadata:
        return []
    left = metadata["rows"] - sum(metadata["dropped"].values())
    if left == sum(counts.values()):
        return []
    return [
        f"the table had {metadata['rows']} rows, {metadata['rows'] - left} were dropped, but "
        f"{sum(counts.values())} examples are here instead of {left}: build it again"
    ]


def _published_counts(published: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Splits, or the table as a whole (`rows`), of another size than published."""
    return [
        f"{name} has {found.get(name, 0)} examples, published: {expected}"
        if name != "rows"
        else f"the table has {found[name]} rows, published: {expected}"
        for name, expected in published.items()
        if found.get(name) != expected
    ]


def _notes(seen: _Seen, counts: dict[str, int]) -> list[str]:
    notes = [f"{count} blank texts in {split}" for split, count in seen.blank.items() if count]
    for what, places in (("texts", seen.texts), ("images", seen.images)):
        for split in counts:
            repeated = [c[split] for c in places.values() if c[split] > 1]
            if repeated:
                notes.append(
                    f"{len(repeated)} {what} occur more than once in {split} "
                    f"({sum(repeated)} of {counts[split]} examples)"
                )
    across = sum(len(splits) > 1 for splits in seen.texts.values())
    if across:
        notes.append(f"{across} texts occur in more than one split")
    return notes
