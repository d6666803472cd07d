"""TFDS builder of VinDr-CXR from the files on PhysioNet."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.vindr_cxr import SPEC as VINDR_CXR
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, relative_boxes
from tfds_builders.vindr_cxr.votes import RULES, DrawnBox, merge_boxes, merge_labels

_HOLDOUT = 0.1
_PLAIN = "No finding"
# The training table calls one column otherwise than the test table.
_OTHER_NAMES = {"Other disease": "Other diseases"}
_VALUES = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1}
_EDGES = ("x_min", "y_min", "x_max", "y_max")


@dataclasses.dataclass
class VindrCxrConfig(ManualConfig):
    """Options of VinDr-CXR.

    Attributes:
        split: "official": train and test as published; "holdout": 10 % of the training images, by a hash, are
            validation.
        merge: what the three radiologists of a training image must agree on, for labels and merged boxes:
            "majority"; "any"; "all"; "uncertain": -1 where they disagree, all boxes.
        boxes: "merged": the mean of boxes that overlap; "drawn": as each radiologist drew them.
    """

    CHOICES: ClassVar = {
        **ManualConfig.CHOICES,
        "split": ("official", "holdout"),
        "merge": RULES,
        "boxes": ("merged", "drawn"),
    }
    VARIANTS: ClassVar = {"official": {"split": "official"}, "holdout": {"split": "holdout"}}

    split: str = "official"
    merge: str = "majority"
    boxes: str = "merged"


class VindrCxr(ManualBuilder):
    """Radiographs with labels, boxes and who drew them."""

    SPEC: ClassVar[DatasetSpec] = VINDR_CXR
    CONFIG = VindrCxrConfig
    _settings: VindrCxrConfig

    def extra_features(self) -> dict[str, Any]:
        return {
            "boxes": boxes_feature(),
            "box_radiologists": tfds.features.Sequence(tfds.features.Text()),
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:4]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Labels and boxes of training, those of the test set, the two folders of images."""
        source = f"from {self.SPEC.homepage}"
        needed = [
            Needed((f"annotations/{name}_{split}.csv",), f"{what}, {source}")
            for split in ("train", "test")
            for name, what in (("image_labels", "labels"), ("annotations", "boxes"))
        ]
        needed += [Needed((split,), f"DICOM images, {source}") for split in ("train", "test")]
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        train_labels, train_boxes, test_labels, test_boxes, *_ = self._layout(folder)
        records = self._records(train_labels, train_boxes, "train")
        expected = dict(self.SPEC.expected_counts)
        if self._settings.split == "holdout":
            names = {record.key for record in records}
            places = hash_splits(names, (1 - _HOLDOUT, _HOLDOUT), splits=("train", "validation"))
            records = [dataclasses.replace(r, split=places[r.key]) for r in records]
            del expected["train"]
        records += self._records(test_labels, test_boxes, "test")
        return Corpus(
            records=records,
            table=train_labels,
            label_names=self.SPEC.label_names,
            expected=expected,
            patient_hint="the published files name no patients; nothing can be done",
        )

    def _records(self, labels: pathlib.Path, boxes: pathlib.Path, split: str) -> list[Record]:
        """Examples of one half."""
        several = split == "train"
        votes = _read_labels(labels, several=several)
        drawn = _read_boxes(boxes, several=several)
        unknown = sorted(set(drawn) - set(votes))
        if unknown:
            raise UserError(f"{boxes} has boxes of {unknown[0]}, which {labels.name} does not list")
        records = []
        for name, readers in votes.items():
            found = drawn.get(name, [])
            if several and self._settings.boxes == "merged":
                found = merge_boxes(found, len(readers), self._settings.merge)
            rule = self._settings.merge if several else "all"
            records.append(
                Record(
                    key=name,
                    image=f"{split}/{name}.dicom",
                    split=split,
                    subject_id="",
                    label=merge_labels(np.stack(list(readers.values())), rule),
                    fields={
                        "study_id": name,
                        "view_position": "PA",
                        "box_radiologists": [" ".join(box.readers) for box in found],
                    },
                    source=found,
                )
            )
        return records

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        boxes = []
        for box in record.source:
            x, y, right, bottom = box.edges
            boxes.append((x, y, right - x, bottom - y, box.label))
        return {"boxes": relative_boxes(boxes, height, width)}


def _read_labels(file: pathlib.Path, *, several: bool) -> dict[str, dict[str, np.ndarray]]:
    """Image -> radiologist ("" where there is one answer) -> int8 [K] in {0, 1}; blank cells are 0."""
    fixed = ("image_id", *(("rad_id",) if several else ()))
    found: dict[str, dict[str, np.ndarray]] = {}
    for line, row in read_rows(file, fixed):
        cells = [_cell(row, name, file) for name in VINDR_CXR.label_names]
        wrong = next((cell for cell in cells if cell not in _VALUES), None)
        if wrong is not None:
            name = VINDR_CXR.label_names[cells.index(wrong)]
            raise UserError(f"{file} line {line}: {name} is {wrong!r}, expected 0 or 1")
        readers = found.setdefault(row["image_id"], {})
        reader = row.get("rad_id", "")
        if reader in readers:
            raise UserError(f"{file} line {line}: {row['image_id']} {reader} is listed twice")
        readers[reader] = np.asarray([_VALUES[cell] for cell in cells], np.int8)
    return found


def _cell(row: dict[str, str], name: str, file: pathlib.Path) -> str:
    """Cell of a finding.

    Raises:
        UserError: no such column.
    """
    for column in (name, _OTHER_NAMES.get(name, name)):
        if column in row:
            return row[column]
    raise UserError(f"{file} has no column {name}; take the published file unchanged")


def _read_boxes(file: pathlib.Path, *, several: bool) -> dict[str, list[DrawnBox]]:
    """Image -> boxes as drawn; rows without a box (`No finding`) are left out.

    Raises:
        UserError: an unknown finding, or an edge that is no number.
    """
    fixed = ("image_id", *(("rad_id",) if several else ()), "class_name", *_EDGES)
    found: dict[str, list[DrawnBox]] = {}
    for line, row in read_rows(file, fixed):
        name = row["class_name"]
        if not any(row[column] for column in _EDGES):
            continue
        if name not in VINDR_CXR.label_names or name == _PLAIN:
            raise UserError(
                f"{file} line {line}: class_name is {name!r}, which is no finding of boxes"
            )
        left, top, right, bottom = (
            number(row[column], file=file, line=line, column=column) for column in _EDGES
        )
        readers = (row["rad_id"],) if several else ()
        label = VINDR_CXR.label_names.index(name)
        found.setdefault(row["image_id"], []).append(
            DrawnBox(label, (left, top, right, bottom), readers)
        )
    return found
