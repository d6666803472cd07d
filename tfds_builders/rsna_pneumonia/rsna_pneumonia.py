"""TFDS builder of the RSNA Pneumonia Detection Challenge from the files on Kaggle."""

from __future__ import annotations

import json
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.rsna_pneumonia import SPEC as RSNA_PNEUMONIA
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, relative_boxes

_FRACTIONS = (0.6, 0.2, 0.2)
_IMAGES = "stage_2_train_images"
_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_KAGGLE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
_BOX = ("x", "y", "width", "height")
_CLASS_COLUMNS = ("patientId", "class")


class RsnaPneumonia(ManualBuilder):
    """Radiographs with boxes, the challenge's target and its three classes."""

    SPEC: ClassVar[DatasetSpec] = RSNA_PNEUMONIA

    def extra_features(self) -> dict[str, Any]:
        return {"boxes": boxes_feature(), "detailed_class": tfds.features.Text()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        mapping = find_one(folder, (_MAPPING,))
        return self._layout(folder)[:2] + ((mapping,) if mapping else ())

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Table of boxes, table of classes, folder of images."""
        needed = (
            Needed(("stage_2_train_labels.csv",), f"boxes and targets, from {_KAGGLE}"),
            Needed(("stage_2_detailed_class_info.csv",), f"three classes, from {_KAGGLE}"),
            Needed((_IMAGES,), f"DICOM images, from {_KAGGLE}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        labels, details, _ = self._layout(folder)
        boxes = _read_boxes(labels)
        classes = {row["patientId"]: row["class"] for _, row in read_rows(details, _CLASS_COLUMNS)}
        mapping = find_one(folder, (_MAPPING,))
        patients = _read_patients(mapping) if mapping else {}
        unmapped = [name for name in boxes if mapping and name not in patients]
        if unmapped:
            raise UserError(f"{mapping} does not list {unmapped[0]} ({len(unmapped)} are missing)")
        groups = {name: patients.get(name, "") for name in boxes}
        splits = hash_splits({group or name for name, group in groups.items()}, _FRACTIONS)
        records = [
            Record(
                key=name,
                image=f"{_IMAGES}/{name}.dcm",
                split=splits[groups[name] or name],
                subject_id=groups[name],
                label=np.asarray([bool(found)], np.int8),
                fields={"study_id": name, "detailed_class": classes.get(name, "")},
                source=found,
            )
            for name, found in boxes.items()
        ]
        return Corpus(
            records=records,
            table=labels,
            label_names=self.SPEC.label_names,
            expected=self.SPEC.expected_counts,
            patient_hint=f"put {_MAPPING} of the challenge's page at RSNA into the folder",
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        return {"boxes": relative_boxes(record.source, height, width)}


def _read_boxes(file: pathlib.Path) -> dict[str, list[tuple[float, float, float, float, int]]]:
    """Image -> boxes (x, y, width, height, label 0); none where the target is 0."""
    boxes: dict[str, list[tuple[float, float, float, float, int]]] = {}
    for line, row in read_rows(file, ("patientId", *_BOX, "Target")):
        found = boxes.setdefault(row["patientId"], [])
        if row["Target"] not in ("0", "1"):
            raise UserError(f"{file} line {line}: Target is {row['Target']!r}, expected 0 or 1")
        if row["Target"] == "1":
            x, y, w, h = (number(row[c], file=file, line=line, column=c) for c in _BOX)
            found.append((x, y, w, h, 0))
    return boxes


def _read_patients(file: pathlib.Path) -> dict[str, str]:
    """Image of the challenge -> patient of NIH ChestX-ray14, whose images are named PATIENT_NUMBER.png.

    Raises:
        UserError: not the published file.
    """
    try:
        entries = json.loads(file.read_text("utf-8"))
        return {e["subset_img_id"]: e["img_id"].partition("_")[0] for e in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not the published list of subset_img_id and img_id ({error!r}); download it again"
        ) from None
