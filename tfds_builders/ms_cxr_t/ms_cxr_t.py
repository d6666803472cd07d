"""TFDS builder of MS-CXR-T: image pairs on MIMIC-CXR-JPG, or sentence pairs alone."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.ms_cxr_t import SPEC as MS_CXR_T
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import (
    UNKNOWN,
    Corpus,
    ManualBuilder,
    ManualConfig,
    Record,
)
from tfds_builders.manual_tables import read_rows
from tfds_builders.mimic_paths import EXCLUDE_WARNING, MimicImage, parse_path
from tfds_builders.official_layout import Needed, require_layout

FINDINGS = ("Consolidation", "Edema", "Pleural Effusion", "Pneumonia", "Pneumothorax")
CHANGES = ("improving", "stable", "worsening")
_LABELS, _SENTENCES = 1_326, 361
_CATEGORIES = {"paraphrase": 1, "contradiction": 0}
_IMAGE_TABLE = "MS_CXR_T_temporal_image_classification_v1.0.0.csv"
_SENTENCE_TABLE = "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv"
_PLACES = ("", "ms-cxr-t/")
_COLUMNS = ("dicom_id", "previous_dicom_id")


@dataclasses.dataclass
class MsCxrTConfig(ManualConfig):
    """Options of MS-CXR-T.

    Attributes:
        task: "images": change between two studies; "sentences": pairs of sentences, without images.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "task": ("images", "sentences")}
    VARIANTS: ClassVar = {"images": {"task": "images"}, "sentences": {"task": "sentences"}}

    task: str = "images"


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """A row of the image table.

    Attributes:
        current: the later image.
        previous: the earlier one.
        progression: int8 [5], index of the change, or -2.
        quality: how each label came about; "" where there is none.
    """

    current: MimicImage
    previous: MimicImage
    progression: np.ndarray
    quality: tuple[str, ...]


class MsCxrT(ManualBuilder):
    """Images with the change since the study before, which is an example, too; or pairs of sentences."""

    SPEC: ClassVar[DatasetSpec] = MS_CXR_T
    CONFIG = MsCxrTConfig
    _settings: MsCxrTConfig

    def media_features(self) -> dict[str, Any]:
        return super().media_features() if self._settings.task == "images" else {}

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        if self._settings.task == "sentences":
            return dict.fromkeys(("sentence_1", "sentence_2", "category"), text)
        return {
            **dict.fromkeys(("prior_study_id", "prior_image_id"), text),
            "progression": tfds.features.Tensor(shape=(len(FINDINGS),), dtype=np.int8),
            "label_quality": tfds.features.Sequence(text),
        }

    def read_media(
        self, folder: pathlib.Path, record: Record
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        if self._settings.task == "sentences":
            return {}, (0, 0)
        return super().read_media(folder, record)

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The table, and the images where they are needed."""
        images = self._settings.task == "images"
        table = _IMAGE_TABLE if images else _SENTENCE_TABLE
        names = tuple(f"{place}{table}" for place in _PLACES)
        needed = [Needed(names, f"labels, from {self.SPEC.homepage}")]
        if images:
            needed.append(Needed(("files",), "images of MIMIC-CXR-JPG"))
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table = self._layout(folder)[0]
        return (
            _sentence_corpus(table) if self._settings.task == "sentences" else _pair_corpus(table)
        )


def _pair_corpus(table: pathlib.Path) -> Corpus:
    """Examples of all images of the table, those that are only the earlier one of a pair without labels."""
    pairs = _read_pairs(table)
    records, current = [], set()
    for pair in pairs:
        name = pair.current.dicom_id
        # An image with two earlier ones would be two examples.
        key = f"{name}/{pair.previous.dicom_id}" if name in current else name
        current.add(name)
        records.append(_record(key, pair.current, pair.previous, pair.progression, pair.quality))
    earlier = {pair.previous.dicom_id: pair.previous for pair in pairs}
    unknown = np.full(len(FINDINGS), UNKNOWN, np.int8)
    for image in earlier.values():
        if image.dicom_id not in current:
            blank = ("",) * len(FINDINGS)
            records.append(_record(image.dicom_id, image, None, unknown, blank))
    found = Counter(
        FINDINGS[k] for pair in pairs for k in np.flatnonzero(pair.progression != UNKNOWN)
    )
    by_finding = ", ".join(f"{name} {found[name]}" for name in FINDINGS)
    return Corpus(
        records=records,
        table=table,
        label_names=tuple(f"{name}, {change}" for name in FINDINGS for change in CHANGES),
        notes=(
            f"image pairs: {len(pairs)}; labels: {found.total()} (published: {_LABELS}): {by_finding}",
            f"{len(records) - len(pairs)} of the images are only the earlier one of a pair and have no label",
            EXCLUDE_WARNING,
        ),
    )


def _record(
    key: str,
    image: MimicImage,
    previous: MimicImage | None,
    progression: np.ndarray,
    quality: tuple[str, ...],
) -> Record:
    """Example of an image; its label has one place per finding and change."""
    label = np.zeros((len(FINDINGS), len(CHANGES)), np.int8)
    label[progression == UNKNOWN] = UNKNOWN
    known = np.flatnonzero(progression != UNKNOWN)
    label[known, progression[known]] = 1
    return Record(
        key=key,
        image=image.path,
        split="test",
        subject_id=image.subject_id,
        label=label.ravel(),
        fields={
            "image_id": image.dicom_id,
            "study_id": image.study_id,
            "view_position": "FRONTAL",
            "prior_study_id": previous.study_id if previous else "",
            "prior_image_id": previous.dicom_id if previous else "",
            "progression": progression,
            "label_quality": list(quality),
        },
    )


def _read_pairs(file: pathlib.Path) -> list[_Pair]:
    """Rows of the image table, whose dicom_id is a path without suffix.

    Raises:
        UserError: a change that is none of the three.
    """
    stems = [name.lower().replace(" ", "_") for name in FINDINGS]
    columns = [f"{stem}_progression" for stem in stems]
    pairs = []
    for line, row in read_rows(file, (*_COLUMNS, *columns)):
        place = f"{file} line {line}"
        progression = np.full(len(FINDINGS), UNKNOWN, np.int8)
        for k, column in enumerate(columns):
            change = row[column].lower()
            if change and change not in CHANGES:
                raise UserError(
                    f"{place}: {column} is {row[column]!r}, expected {', '.join(CHANGES)} or blank"
                )
            if change:
                progression[k] = CHANGES.index(change)
        pairs.append(
            _Pair(
                current=parse_path(row["dicom_id"], place),
                previous=parse_path(row["previous_dicom_id"], place),
                progression=progression,
                quality=tuple(row.get(f"{stem}_label_quality", "") for stem in stems),
            )
        )
    return pairs


def _sentence_corpus(file: pathlib.Path) -> Corpus:
    """Pairs of sentences.

    Raises:
        UserError: a category that is none of the two.
    """
    records = []
    for line, row in read_rows(file, ("sentence_1", "sentence_2", "category")):
        category = row["category"].lower()
        if category not in _CATEGORIES:
            raise UserError(
                f"{file} line {line}: category is {row['category']!r}, expected {' or '.join(_CATEGORIES)}"
            )
        records.append(
            Record(
                key=f"{len(records) + 1:04d}",
                image="",
                split="test",
                subject_id="",
                label=np.asarray([_CATEGORIES[category]], np.int8),
                fields={
                    "text": row["sentence_1"],
                    "sentence_1": row["sentence_1"],
                    "sentence_2": row["sentence_2"],
                    "category": category,
                },
            )
        )
    return Corpus(
        records=records,
        table=file,
        label_names=("Paraphrase",),
        expected={"test": _SENTENCES},
        patient_hint="sentences have none",
    )
