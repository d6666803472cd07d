"""`data check`: what a reviewer would ask about a built dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlp_jax.data.duplicates import HASH_BITS, MAX_DISTANCE, duplicate_groups, image_hash
from medvlp_jax.data.paths import dataset_folder
from medvlp_jax.data.reports import normalise_for_id
from medvlp_jax.data.source import Source, open_source
from medvlp_jax.data.spec import load_spec
from medvlp_jax.data.split_lists import compare_split_lists
from medvlp_jax.errors import UserError

_SHOWN_GROUPS = 10  # groups of duplicates in the printed report; the JSON file has all


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        dataset: name.
        counts: split -> examples.
        published: split, or `rows` for the table as a whole -> published number, where there is one.
        patients: split -> distinct patients.
        texts: split -> {"blank", "distinct", "repeated"}: blank texts, distinct others, examples whose
            text occurs more than once in the split.
        prevalence: label -> split -> (positive, known).
        duplicates: groups of images that are copies of each other, as (split, image id).
        problems: findings that make results wrong (leaks, wrong counts).
        notes: findings worth knowing (repeated texts, duplicate images in one split).
        splits: hash over split and id of all examples; "" where the build wrote none.
    """

    dataset: str
    counts: dict[str, int]
    published: dict[str, int]
    patients: dict[str, int]
    texts: dict[str, dict[str, int]]
    prevalence: dict[str, dict[str, tuple[int, int]]]
    duplicates: tuple[tuple[tuple[str, str], ...], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    splits: str = ""

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def to_json(self) -> str:
        """All findings, the groups of duplicates in full."""
        return json.dumps({"ok": self.ok, **dataclasses.asdict(self)}, indent=2) + "\n"

    def __str__(self) -> str:
        lines = [self.dataset, *_split_table(self)]
        if self.prevalence:
            splits = list(self.counts)
            lines += ["", f"{'label: positive / known':<32}" + "".join(f"{s:>22}" for s in splits)]
            for label, found in self.prevalence.items():
                cells = (_share(*found[s]) for s in splits)
                lines.append(f"{label:<32}" + "".join(f"{cell:>22}" for cell in cells))
        if self.duplicates:
            lines += ["", *_duplicate_lines(self.duplicates)]
        lines.append("")
        if self.splits:
            lines.append(self.splits)
        lines += [f"PROBLEM: {text}" for text in self.problems]
        lines += [f"note: {text}" for text in self.notes]
        lines.append("no problems found" if self.ok else f"{len(self.problems)} problems found")
        return "\n".join(lines)


def _split_table(report: CheckReport) -> list[str]:
    """Counts of each split."""
    names = ("split", "examples", "published", "patients", "blank texts", "repeated texts")
    lines = ["".join(f"{name:<14}" if not k else f"{name:>16}" for k, name in enumerate(names))]
    for split, count in report.counts.items():
        text = report.texts[split]
        cells = (count, report.published.get(split, "-"), report.patients[split])
        cells = (*cells, text["blank"], text["repeated"])
        lines.append(f"{split:<14}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def _share(positive: int, known: int) -> str:
    return f"{positive}/{known} {positive / known:>6.1%}" if known else "-"


def _duplicate_lines(groups: tuple[tuple[tuple[str, str], ...], ...]) -> list[str]:
    """The first groups, those that leak from split to split before others."""
    leaks = sorted(groups, key=lambda group: len({split for split, _ in group}) < 2)
    lines = [
        f"{len(groups)} groups of duplicate images (at most {MAX_DISTANCE} of {HASH_BITS} bits of a "
        "perceptual hash differ):"
    ]
    for group in leaks[:_SHOWN_GROUPS]:
        members = ", ".join(f"{split} {name}" for split, name in group[:4])
        lines.append(f"  {members}" + (f" and {len(group) - 4} more" if len(group) > 4 else ""))
    if len(groups) > _SHOWN_GROUPS:
        lines.append(f"  and {len(groups) - _SHOWN_GROUPS} more groups; --out FILE.json has all")
    return lines


@dataclasses.dataclass
class _Seen:
    """What is remembered of every example, in the order of reading.

    Attributes:
        patients: patient -> split -> examples.
        texts: digest of the normalised text -> split -> examples.
        blank: split -> examples without a text.
        hashes: perceptual hash of each image.
        images: (split, image id) of each image.
    """

    patients: dict[str, Counter] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    texts: dict[bytes, Counter] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    blank: Counter = dataclasses.field(default_factory=Counter)
    hashes: list[bytes] = dataclasses.field(default_factory=list)
    images: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, example: Mapping[str, Any], split: str, number: int) -> None:
        """Notes where patient, image and text of one example occur."""
        if example.get("subject_id"):
            self.patients[example["subject_id"]][split] += 1
        picture = _picture(example)
        if picture is not None:
            self.hashes.append(image_hash(picture))
            self.images.append((split, example.get("image_id") or f"#{number}"))
        text = normalise_for_id(example.get("text", ""))
        if text:
            # Not the text itself: a large dataset has gigabytes of it.
            self.texts[hashlib.blake2b(text.encode(), digest_size=12).digest()][split] += 1
        else:
            self.blank[split] += 1


def _picture(example: Mapping[str, Any]) -> bytes | None:
    """Encoded image of an example: the middle slice of a volume, None for texts alone."""
    if "image" in example:
        return example["image"]
    slices = example.get("slices") or [None]
    return slices[len(slices) // 2]


def check_dataset(name: str, data_dir: str | None = None) -> CheckReport:
    """Reads every example once and compares the splits.

    Args:
        name: built dataset.
        data_dir: see `data.paths.data_root`.

    Raises:
        UserError: not built.
    """
    spec = load_spec(name)
    sources = open_splits(name, data_dir)
    seen, prevalence = _Seen(), {}
    for split, source in sources.items():
        labels = []
        for number, example in enumerate(source):
            seen.add(example, split, number)
            labels.append(np.asarray(example.get("label", np.zeros(0, np.int8))))
        for k, label in enumerate(source.label_names):
            column = np.asarray([row[k] for row in labels])
            found = prevalence.setdefault(label, dict.fromkeys(sources, (0, 0)))
            found[split] = (int((column == 1).sum()), int((column != -2).sum()))
    counts = {split: len(source) for split, source in sources.items()}
    metadata = next(iter(sources.values())).metadata
    published = dict(metadata.get("expected_counts", spec.expected_counts))
    places, groups = _image_places(seen)
    problems = _leaks(seen.patients, "patients") + _leaks(places, "images")
    problems += _recorded_counts(metadata, counts)
    problems += _other_labels(sources, spec.label_names)
    problems += _published_counts(published, {**counts, "rows": metadata.get("rows", 0)})
    recorded = metadata.get("split_hash", "")
    splits, changed = compare_split_lists(dataset_folder(name, data_dir), recorded)
    return CheckReport(
        dataset=name,
        counts=counts,
        published=published,
        patients={
            split: sum(split in found for found in seen.patients.values()) for split in counts
        },
        texts={split: _text_counts(seen, split) for split in counts},
        prevalence=prevalence,
        duplicates=groups,
        problems=tuple(problems + changed),
        notes=tuple(_notes(seen, places, counts)),
        splits=splits,
    )


def write_json(report: CheckReport, file: str | os.PathLike[str]) -> None:
    """Writes `to_json` to a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        pathlib.Path(file).write_text(report.to_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {file}: {error.strerror}; give another file") from error


def open_splits(name: str, data_dir: str | None = None) -> dict[str, Source]:
    """Splits of a dataset that are built.

    Raises:
        UserError: none is.
    """
    sources = {}
    missing = None
    for split in load_spec(name).splits:
        try:
            sources[split] = open_source(name, split, data_dir)
        except UserError as error:
            missing = error
    if not sources and missing is not None:
        raise missing
    return sources


def _image_places(
    seen: _Seen,
) -> tuple[dict[int, Counter], tuple[tuple[tuple[str, str], ...], ...]]:
    """Image -> split -> number, copies counted as one image; and the groups of copies."""
    packed = np.frombuffer(b"".join(seen.hashes), np.uint8).reshape(-1, HASH_BITS // 8)
    places: dict[int, Counter] = defaultdict(Counter)
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for group, (split, image) in zip(duplicate_groups(packed).tolist(), seen.images, strict=True):
        places[group][split] += 1
        members[group].append((split, image))
    return places, tuple(tuple(found) for found in members.values() if len(found) > 1)


def _text_counts(seen: _Seen, split: str) -> dict[str, int]:
    found = [places[split] for places in seen.texts.values() if split in places]
    repeated = sum(count for count in found if count > 1)
    return {"blank": seen.blank[split], "distinct": len(found), "repeated": repeated}


def _leaks(places: Mapping[Any, Counter], what: str) -> list[str]:
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


def _other_labels(sources: Mapping[str, Source], expected: tuple[str, ...]) -> list[str]:
    """Splits whose labels are not those that the dataset is known for."""
    return [
        f"{split} has labels {', '.join(source.label_names)}, expected {', '.join(expected)}"
        for split, source in sources.items()
        if expected and source.label_names != expected
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


def _notes(seen: _Seen, places: Mapping[int, Counter], counts: Mapping[str, int]) -> list[str]:
    notes = [f"{count} blank texts in {split}" for split, count in seen.blank.items() if count]
    for what, found in (("texts", seen.texts), ("images", places)):
        for split in counts:
            repeated = [c[split] for c in found.values() if c[split] > 1]
            if repeated:
                notes.append(
                    f"{len(repeated)} {what} occur more than once in {split} "
                    f"({sum(repeated)} of {counts[split]} examples)"
                )
    across = sum(len(splits) > 1 for splits in seen.texts.values())
    if across:
        notes.append(f"{across} texts occur in more than one split")
    return notes
