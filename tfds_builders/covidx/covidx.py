"""TFDS builder of COVIDx CXR from the published lists of any version and the folders of images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.covidx import SPEC as COVIDX
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_lines
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.split_leaks import leak_notes
from tfds_builders.zipped_images import ZippedImages, find_place

_THREE = ("normal", "pneumonia", "COVID-19")
_TWO = ("negative", "positive")
_VALIDATION = 0.2


@dataclasses.dataclass(frozen=True)
class Version:
    """One published version.

    Attributes:
        lists: folder of the images -> name of the list.
        classes: as the lists call them.
        expected: published counts; `rows` are those of all lists.
    """

    lists: dict[str, str]
    classes: tuple[str, ...]
    expected: dict[str, int] = dataclasses.field(default_factory=dict)


def _older(
    name: str, classes: tuple[str, ...], train: int | None = None, test: int | None = None
) -> Version:
    """A version with a list for training and one for testing."""
    lists = {part: f"{part}_COVIDx{name}.txt" for part in ("train", "test")}
    known = {} if train is None or test is None else {"test": test, "rows": train + test}
    return Version(lists, classes, known)


_VERSIONS = {
    "cxr4": Version(
        {part: f"{part}.txt" for part in ("train", "val", "test")}, _TWO, {"rows": 84_818}
    ),
    "cxr3a": _older("_CXR-3A", _THREE, 29_634, 400),
    "cxr3b": _older("_CXR-3B", _TWO, 29_986, 400),
    **{f"v{n}a": _older(f"{n}A", _THREE) for n in (9, 8, 7)},
    **{f"v{n}b": _older(f"{n}B", _TWO) for n in (9, 8, 7)},
    "v6": _older("6", _TWO, 14_311, 200),
    "v5": _older("5", _THREE),
}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclasses.dataclass
class CovidxConfig(ManualConfig):
    """Options of COVIDx.

    Attributes:
        release: which of the published lists.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "release": tuple(_VERSIONS)}
    VARIANTS: ClassVar = {name: {"release": name} for name in _VERSIONS}

    release: str = "cxr4"


class Covidx(ManualBuilder):
    """Radiographs with class, patient and the collection that they come from."""

    SPEC: ClassVar[DatasetSpec] = COVIDX
    CONFIG = CovidxConfig
    _settings: CovidxConfig

    def extra_features(self) -> dict[str, Any]:
        return dict.fromkeys(("class_name", "source"), tfds.features.Text())

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        version = _VERSIONS[self._settings.release]
        needed = [
            Needed((name, f"labels/{name}"), f"list of version {self._settings.release}")
            for name in version.lists.values()
        ]
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        version = _VERSIONS[self._settings.release]
        unpacked = ZippedImages(())
        records, repeated = {}, 0
        for part, table in zip(version.lists, self.table_files(folder), strict=True):
            for patient, name, kind, source in _read_list(table, version.classes):
                key = f"{part}/{name}"
                repeated += key in records
                records[key] = Record(
                    key=key,
                    image=find_place(folder, name, (part, f"data/{part}"), unpacked),
                    split=_SPLITS[part],
                    # Collections number their patients without regard to each other.
                    subject_id=f"{source}:{patient}",
                    label=np.asarray([kind == c for c in version.classes], np.int8),
                    fields={"class_name": kind, "source": source},
                )
        if not records:
            raise UserError(f"the lists of version {self._settings.release} in {folder} are empty")
        published = list(records.values())
        sources = Counter(record.fields["source"] for record in published)
        found = ", ".join(f"{name} {count}" for name, count in sorted(sources.items()))
        return Corpus(
            records=published if "val" in version.lists else _with_validation(published),
            table=folder / version.lists["train"],
            label_names=version.classes,
            expected=version.expected,
            dropped={"listed_again": repeated},
            notes=(f"images by source: {found}", *leak_notes(published, "patients have images")),
            shared_subjects=True,
        )


def _read_list(file: pathlib.Path, classes: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Patient, file name, class and source of each line.

    Raises:
        UserError: a line of another form.
    """
    for number, line in enumerate(read_lines(file), start=1):
        parts = line.split()
        if parts[-1] in classes:  # the oldest lists do not name the source
            parts.append("")
        # A file name may hold blanks.
        if len(parts) < 4 or parts[-2] not in classes:
            raise UserError(
                f"{file} line {number} is {line[:80]!r}, expected patient, file name, class "
                f"({', '.join(classes)}) and source; take the published list unchanged"
            )
        yield parts[0], " ".join(parts[1:-2]), parts[-2], parts[-1]


def _with_validation(records: list[Record]) -> list[Record]:
    """A fifth of the patients of the training list, by a hash, for validation."""
    patients = {record.subject_id for record in records if record.split == "train"}
    splits = hash_splits(patients, (1 - _VALIDATION, _VALIDATION), splits=("train", "validation"))
    return [
        dataclasses.replace(r, split=splits[r.subject_id]) if r.split == "train" else r
        for r in records
    ]
