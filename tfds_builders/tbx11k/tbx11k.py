"""TFDS builder of TBX11K from the official archive."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.tbx11k import SPEC as TBX11K
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.json_files import box_of, listed, read_json
from tfds_builders.manual_builder import (
    UNKNOWN,
    Corpus,
    ManualBuilder,
    ManualConfig,
    Record,
)
from tfds_builders.manual_tables import read_lines
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, relative_boxes

_HOLDOUT = 0.1
_GROUPS = ("health", "sick", "tb")
_KINDS = TBX11K.label_names[len(_GROUPS) :]

Boxes = list[tuple[float, float, float, float, int]]


@dataclasses.dataclass
class Tbx11kConfig(ManualConfig):
    """Options of TBX11K.

    Attributes:
        split: "official": the published train and val; "holdout": 10 % of train, by a hash of the image, are
            validation, and val, the last one with labels, is test.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("official", "holdout")}
    VARIANTS: ClassVar = {"official": {"split": "official"}, "holdout": {"split": "holdout"}}

    split: str = "official"


class Tbx11k(ManualBuilder):
    """Radiographs with their group, kinds of tuberculosis and boxes."""

    SPEC: ClassVar[DatasetSpec] = TBX11K
    CONFIG = Tbx11kConfig
    _settings: Tbx11kConfig

    def extra_features(self) -> dict[str, Any]:
        return {"boxes": boxes_feature()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:4]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Lists of train and val, boxes of train and val, images."""
        source = f"by {self.SPEC.homepage}"
        names = ("TBX11K_train", "TBX11K_val")
        needed = [Needed((f"lists/{name}.txt",), f"the split, {source}") for name in names]
        needed += [Needed((f"annotations/json/{n}.json",), f"boxes, {source}") for n in names]
        needed.append(Needed(("imgs",), f"images, {source}"))
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        train_list, val_list, train_boxes, val_boxes, _ = self._layout(folder)
        train = _read_half(train_list, train_boxes, "train")
        if self._settings.split == "official":
            records = train + _read_half(val_list, val_boxes, "validation")
            expected = self.SPEC.expected_counts
        else:
            names = {record.key for record in train}
            places = hash_splits(names, (1 - _HOLDOUT, _HOLDOUT), splits=("train", "validation"))
            records = [dataclasses.replace(r, split=places[r.key]) for r in train]
            records += _read_half(val_list, val_boxes, "test")
            expected = {"test": self.SPEC.expected_counts["validation"]}
        return Corpus(
            records=records,
            table=train_list,
            label_names=self.SPEC.label_names,
            expected=expected,
            patient_hint="the published files name no patients; nothing can be done",
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        return {"boxes": relative_boxes(record.source, height, width)}


def _read_half(list_file: pathlib.Path, boxes_file: pathlib.Path, split: str) -> list[Record]:
    """Examples of one list.

    Raises:
        UserError: an image in an unknown folder, or boxes of an image that is not listed.
    """
    names = read_lines(list_file)
    boxes = _read_boxes(boxes_file)
    unlisted = sorted(set(boxes) - set(names))
    if unlisted:
        raise UserError(f"{boxes_file} has boxes of {unlisted[0]}, which {list_file} does not list")
    records = []
    for number, name in enumerate(names, start=1):
        group = name.partition("/")[0]
        if group not in _GROUPS:
            raise UserError(
                f"{list_file} entry {number} is {name!r}, expected health/, sick/ or tb/ and a file"
            )
        found = boxes.get(name, [])
        records.append(
            Record(
                key=name,
                image=f"imgs/{name}",
                split=split,
                subject_id="",
                label=_label(group, found),
                fields={"study_id": name},
                source=found,
            )
        )
    return records


def _label(group: str, boxes: Boxes) -> np.ndarray:
    """int8 [6]: the group; the kinds by the boxes, unknown for tuberculosis without any."""
    label = np.zeros(len(TBX11K.label_names), np.int8)
    label[_GROUPS.index(group)] = 1
    if group == "tb" and not boxes:
        label[len(_GROUPS) :] = UNKNOWN
    for *_, kind in boxes:
        label[kind] = 1
    return label


def _read_boxes(file: pathlib.Path) -> dict[str, Boxes]:
    """Image -> boxes (x, y, width, height, label) of a COCO file.

    Raises:
        UserError: not such a file, or a kind that is not one of the three.
    """
    content = read_json(file)
    images = {
        e["id"]: str(e["file_name"])
        for e in listed(content, "images", ("id", "file_name"), str(file))
    }
    kinds = {
        e["id"]: str(e["name"]) for e in listed(content, "categories", ("id", "name"), str(file))
    }
    boxes: dict[str, Boxes] = {}
    keys = ("image_id", "category_id", "bbox")
    for number, entry in enumerate(listed(content, "annotations", keys, str(file)), start=1):
        place = f"{file} annotations entry {number}"
        kind, image = kinds.get(entry["category_id"], ""), images.get(entry["image_id"])
        if kind not in _KINDS or image is None:
            raise UserError(
                f"{place}: category {entry['category_id']!r} of image {entry['image_id']!r} is unknown; take "
                "the published file unchanged"
            )
        x, y, width, height = box_of(entry["bbox"], place)
        label = TBX11K.label_names.index(kind)
        boxes.setdefault(image, []).append((x, y, width, height, label))
    return boxes
