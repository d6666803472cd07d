"""TFDS builder of NIH ChestX-ray14 from the official files, in either of its two splits."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.nih_cxr14 import SPEC as NIH_CXR14
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import number, read_lines, read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, relative_boxes

_VALIDATION = 0.1
_RANDOM = (0.7, 0.1, 0.2)
_OLDEST = 120
_ENTRY_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
# The header of the published table is `Image Index,Finding Label,Bbox [x,y,w,h],,,`.
_BOX = ("Bbox [x", "y", "w", "h]")
_BOX_LABELS = {"Infiltrate": "Infiltration"}


@dataclasses.dataclass
class NihCxr14Config(ManualConfig):
    """Options of NIH ChestX-ray14.

    Attributes:
        split: "official": test_list.txt is test, and 10 % of the patients of train_val_list.txt, by a hash,
            are validation; "random": 70 / 10 / 20 % of all patients by a hash.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("official", "random")}
    VARIANTS: ClassVar = {"official": {"split": "official"}, "random": {"split": "random"}}

    split: str = "official"


class NihCxr14(ManualBuilder):
    """Radiographs with labels, boxes, view, sex and age."""

    SPEC: ClassVar[DatasetSpec] = NIH_CXR14
    CONFIG = NihCxr14Config
    _settings: NihCxr14Config

    def extra_features(self) -> dict[str, Any]:
        return {"boxes": boxes_feature(), "follow_up": np.int32}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:4]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Table of images, table of boxes, the two lists, a folder of images."""
        source = f"from {self.SPEC.homepage}"
        needed = (
            Needed(("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"), f"labels, {source}"),
            Needed(("BBox_List_2017.csv",), f"boxes, {source}"),
            Needed(("train_val_list.txt",), f"the official split, {source}"),
            Needed(("test_list.txt",), f"the official split, {source}"),
            Needed(("images", "images_001"), f"images, unpacked, {source}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table, boxes_file, train_list, test_list, _ = self._layout(folder)
        boxes = _read_boxes(boxes_file)
        paths = find_images(folder)
        records = []
        for line, row in read_rows(table, _ENTRY_COLUMNS):
            name = row["Image Index"]
            follow_up = number(row["Follow-up #"], file=table, line=line, column="Follow-up #")
            records.append(
                Record(
                    key=name,
                    image=paths.get(name, f"images/{name}"),
                    split="",
                    subject_id=row["Patient ID"],
                    label=_labels(row["Finding Labels"], table, line),
                    fields={
                        "study_id": f"{row['Patient ID']}/{int(follow_up)}",
                        "follow_up": int(follow_up),
                        "view_position": row["View Position"],
                        "sex": row["Patient Gender"],
                        "age": _age(row["Patient Age"]),
                    },
                    source=boxes.get(name, []),
                )
            )
        official = self._settings.split == "official"
        splits = (
            _official_splits(records, train_list, test_list)
            if official
            else hash_splits({r.subject_id for r in records}, _RANDOM)
        )
        expected = self.SPEC.expected_counts
        return Corpus(
            records=[dataclasses.replace(r, split=splits[r.subject_id]) for r in records],
            table=table,
            label_names=self.SPEC.label_names,
            expected=expected if official else {"rows": expected["rows"]},
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        return {"boxes": relative_boxes(record.source, height, width)}


def _labels(cell: str, file: pathlib.Path, line: int) -> np.ndarray:
    """int8 [K]: 1 for each finding of a cell like `Cardiomegaly|Effusion`, else 0.

    Raises:
        UserError: an unknown finding.
    """
    found = set(cell.split("|")) - {"No Finding"}
    unknown = sorted(found - set(NIH_CXR14.label_names))
    if unknown or not cell:
        raise UserError(
            f"{file} line {line}: Finding Labels is {cell!r}; expected No Finding or names of "
            f"{', '.join(NIH_CXR14.label_names)} with | between them"
        )
    return np.asarray([name in found for name in NIH_CXR14.label_names], np.int8)


def _age(cell: str) -> float:
    """Years of `58` or `058Y`; NaN for months or days (`003M`) and the few impossible ages."""
    match = re.fullmatch(r"0*(\d+)Y?", cell)
    years = float(match[1]) if match else math.nan
    return years if years <= _OLDEST else math.nan


def _read_boxes(file: pathlib.Path) -> dict[str, list[tuple[float, float, float, float, int]]]:
    """Image -> boxes (x, y, width, height, label)."""
    boxes: dict[str, list[tuple[float, float, float, float, int]]] = {}
    for line, row in read_rows(file, ("Image Index", "Finding Label", *_BOX)):
        name = _BOX_LABELS.get(row["Finding Label"], row["Finding Label"])
        if name not in NIH_CXR14.label_names:
            raise UserError(f"{file} line {line}: Finding Label {name!r} is not one of the 14")
        x, y, w, h = (number(row[c], file=file, line=line, column=c) for c in _BOX)
        boxes.setdefault(row["Image Index"], []).append(
            (x, y, w, h, NIH_CXR14.label_names.index(name))
        )
    return boxes


def _official_splits(
    records: list[Record], train_list: pathlib.Path, test_list: pathlib.Path
) -> dict[str, str]:
    """Patient -> split, where the published lists name images.

    Raises:
        UserError: an image in neither list, or a patient in both.
    """
    of_training, of_test = set(read_lines(train_list)), set(read_lines(test_list))
    lists: dict[str, bool] = {}
    for record in records:
        is_test = record.key in of_test
        if is_test == (record.key in of_training):
            where = "both" if is_test else "neither"
            raise UserError(
                f"{record.key} is in {where} of {train_list} and {test_list.name}; take the published "
                "lists unchanged, or --option split=random"
            )
        if lists.setdefault(record.subject_id, is_test) != is_test:
            raise UserError(
                f"patient {record.subject_id} is in {train_list} and in {test_list.name}"
            )
    training = {patient for patient, is_test in lists.items() if not is_test}
    splits = hash_splits(training, (1 - _VALIDATION, _VALIDATION), splits=("train", "validation"))
    return {**splits, **{patient: "test" for patient, is_test in lists.items() if is_test}}


def find_images(folder: pathlib.Path) -> dict[str, str]:
    """Image -> path relative to the folder: one folder of all, or the twelve of the archives."""
    return {
        path.name: path.relative_to(folder).as_posix()
        for pattern in ("images/*.png", "images_*/*.png", "images_*/images/*.png")
        for path in folder.glob(pattern)
    }
