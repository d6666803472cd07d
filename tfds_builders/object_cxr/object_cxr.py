"""TFDS builder of Object-CXR from the published files."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.object_cxr import SPEC as OBJECT_CXR
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, mask_feature, relative_boxes, stored_mask

_HOLDOUT = 0.2
_KINDS = ("rectangle", "ellipse", "polygon")


@dataclasses.dataclass
class ObjectCxrConfig(ManualConfig):
    """Options of Object-CXR.

    Attributes:
        split: "official": train and dev are train and validation; "holdout": 20 % of train, by a hash of the
            image, are validation, and dev is test, the shares of MGCA.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("official", "holdout")}
    VARIANTS: ClassVar = {"official": {"split": "official"}, "holdout": {"split": "holdout"}}

    split: str = "official"


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """An outlined object.

    Attributes:
        kind: "rectangle", "ellipse" or "polygon".
        points: float [P, 2], x and y in pixels; two corners of a rectangle or of the box around an ellipse.
    """

    kind: str
    points: np.ndarray

    def box(self) -> tuple[float, float, float, float, int]:
        """x, y, width, height, label 0."""
        (left, top), (right, bottom) = self.points.min(axis=0), self.points.max(axis=0)
        return float(left), float(top), float(right - left), float(bottom - top), 0

    def draw(self, mask: np.ndarray) -> None:
        """Sets its pixels in a uint8 [H, W]."""
        corners = np.round(self.points).astype(np.int32)
        if self.kind == "polygon":
            cv2.fillPoly(mask, [corners], 1)
        elif self.kind == "rectangle":
            cv2.rectangle(mask, corners[0].tolist(), corners[1].tolist(), 1, cv2.FILLED)
        else:
            centre = np.round(self.points.mean(axis=0)).astype(int).tolist()
            axes = np.round((self.points[1] - self.points[0]) / 2).astype(int).tolist()
            cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, cv2.FILLED)


class ObjectCxr(ManualBuilder):
    """Radiographs with boxes and a mask of foreign objects."""

    SPEC: ClassVar[DatasetSpec] = OBJECT_CXR
    CONFIG = ObjectCxrConfig
    _settings: ObjectCxrConfig

    def extra_features(self) -> dict[str, Any]:
        return {
            "boxes": boxes_feature(),
            "box_shapes": tfds.features.Sequence(tfds.features.Text()),
            "mask": mask_feature(),
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:2]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Tables of train and dev, the two folders of images."""
        needed = [
            Needed(("train.csv",), "outlines of the training images"),
            Needed(("dev.csv",), "outlines of the validation images"),
            Needed(("train",), "images: unzip train.zip"),
            Needed(("dev",), "images: unzip dev.zip"),
        ]
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        train_file, dev_file, *_ = self._layout(folder)
        train = _read_records(train_file, "train", "train")
        if self._settings.split == "official":
            records = train + _read_records(dev_file, "dev", "validation")
            expected = self.SPEC.expected_counts
        else:
            names = {record.key for record in train}
            places = hash_splits(names, (1 - _HOLDOUT, _HOLDOUT), splits=("train", "validation"))
            records = [dataclasses.replace(r, split=places[r.key]) for r in train]
            records += _read_records(dev_file, "dev", "test")
            expected = {"test": self.SPEC.expected_counts["validation"]}
        return Corpus(
            records=records,
            table=train_file,
            label_names=self.SPEC.label_names,
            expected=expected,
            patient_hint="the published files name no patients; nothing can be done",
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        shapes: list[Shape] = record.source
        mask = np.zeros((height, width), np.uint8)
        for shape in shapes:
            shape.draw(mask)
        return {
            "boxes": relative_boxes([shape.box() for shape in shapes], height, width),
            "box_shapes": [shape.kind for shape in shapes],
            "mask": io.BytesIO(stored_mask(mask > 0, self._settings.size)),
        }


def _read_records(file: pathlib.Path, images: str, split: str) -> list[Record]:
    """Examples of one table; a blank annotation means no object."""
    records = []
    for line, row in read_rows(file, ("image_name", "annotation")):
        shapes = [
            _parse(text, f"{file} line {line}")
            for text in row["annotation"].split(";")
            if text.strip()
        ]
        records.append(
            Record(
                key=f"{images}/{row['image_name']}",
                image=f"{images}/{row['image_name']}",
                split=split,
                subject_id="",
                label=np.asarray([bool(shapes)], np.int8),
                source=shapes,
            )
        )
    return records


def _parse(text: str, place: str) -> Shape:
    """`KIND x1 y1 x2 y2 ...` with KIND 0 rectangle, 1 ellipse, 2 polygon.

    Raises:
        UserError: something else.
    """
    kind, *numbers = text.split()
    try:
        name = _KINDS[("0", "1", "2").index(kind)]
        points = np.asarray([float(number) for number in numbers]).reshape(-1, 2)
        if len(points) < 2 or (len(points) > 2 and name != "polygon"):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{place}: annotation {text.strip()!r}, expected 0 (rectangle) or 1 (ellipse) and x1 y1 x2 y2, "
            "or 2 (polygon) and x1 y1 ... xn yn"
        ) from None
    return Shape(name, points)
