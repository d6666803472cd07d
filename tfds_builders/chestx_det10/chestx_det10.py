"""TFDS builder of ChestX-Det10 from its two JSON files and the images of NIH ChestX-ray14."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.chestx_det10 import SPEC as CHESTX_DET10
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.json_files import box_of, listed, read_json
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.nih_cxr14.nih_cxr14 import find_images
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import boxes_feature, relative_boxes

_HOLDOUT = 0.1
_SHARED = (
    "warning: {count} patients are in train and in test of the published split, which was drawn by image; "
    "results for a paper: say so, or use chestx_det10/leak_free"
)
_LEAK_FREE = "the test set is the published one; its patients are left out of training"


@dataclasses.dataclass
class ChestxDet10Config(ManualConfig):
    """Options of ChestX-Det10.

    Attributes:
        split: "official": train.json and test.json, which share patients; "leak_free": the same test set,
            training without its patients, 10 % of the others, by a hash, as validation.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("official", "leak_free")}
    VARIANTS: ClassVar = {"official": {"split": "official"}, "leak_free": {"split": "leak_free"}}

    split: str = "official"


class ChestxDet10(ManualBuilder):
    """Radiographs with boxes of ten findings."""

    SPEC: ClassVar[DatasetSpec] = CHESTX_DET10
    CONFIG = ChestxDet10Config
    _settings: ChestxDet10Config

    def extra_features(self) -> dict[str, Any]:
        return {"boxes": boxes_feature()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:2]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Boxes of train and test, a folder of images."""
        needed = (
            Needed(("train.json",), f"boxes, from {self.SPEC.homepage}"),
            Needed(("test.json",), f"boxes, from {self.SPEC.homepage}"),
            Needed(("train_data", "images", "images_001"), "images of NIH ChestX-ray14"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        train_file, test_file, _ = self._layout(folder)
        nih = find_images(folder)
        train = _read_records(train_file, folder, "train", nih)
        test = _read_records(test_file, folder, "test", nih)
        tested = {record.subject_id for record in test}
        shared = tested & {record.subject_id for record in train}
        if self._settings.split == "official":
            return Corpus(
                records=train + test,
                table=train_file,
                label_names=self.SPEC.label_names,
                expected=self.SPEC.expected_counts,
                notes=(_SHARED.format(count=len(shared)),) if shared else (),
                shared_subjects=True,
            )
        kept = [record for record in train if record.subject_id not in shared]
        places = hash_splits(
            {record.subject_id for record in kept},
            (1 - _HOLDOUT, _HOLDOUT),
            splits=("train", "validation"),
        )
        kept = [dataclasses.replace(r, split=places[r.subject_id]) for r in kept]
        return Corpus(
            records=kept + test,
            table=train_file,
            label_names=self.SPEC.label_names,
            expected={
                "test": self.SPEC.expected_counts["test"],
                "rows": sum(self.SPEC.expected_counts.values()),
            },
            dropped={"patient_of_test": len(train) - len(kept)},
            notes=(_LEAK_FREE,),
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        return {"boxes": relative_boxes(record.source, height, width)}


def _read_records(
    file: pathlib.Path, folder: pathlib.Path, split: str, nih: dict[str, str]
) -> list[Record]:
    """Examples of one JSON file.

    Args:
        file: list of `file_name`, `syms` and `boxes`.
        folder: the official files.
        split: "train" or "test".
        nih: image -> path, where the folders of NIH are there.

    Raises:
        UserError: not the published file.
    """
    records = []
    entries = listed(read_json(file), "", ("file_name", "syms", "boxes"), str(file))
    for number, entry in enumerate(entries, start=1):
        place = f"{file} entry {number}"
        name = str(entry["file_name"])
        own = f"{split}_data/{name}"
        boxes = _boxes(entry["syms"], entry["boxes"], place)
        label = np.zeros(len(CHESTX_DET10.label_names), np.int8)
        label[[k for *_, k in boxes]] = 1
        records.append(
            Record(
                key=name,
                image=own if name not in nih or (folder / own).exists() else nih[name],
                split=split,
                # NIH names its images PATIENT_NUMBER.png.
                subject_id=name.partition("_")[0],
                label=label,
                fields={"study_id": name.partition(".")[0]},
                source=boxes,
            )
        )
    return records


def _boxes(findings: Any, boxes: Any, place: str) -> list[tuple[float, float, float, float, int]]:
    """Boxes (x, y, width, height, label) of two parallel lists.

    Raises:
        UserError: lists of other lengths, or an unknown finding.
    """
    if not isinstance(findings, list) or not isinstance(boxes, list) or len(findings) != len(boxes):
        raise UserError(f"{place}: syms and boxes are not lists of one length; download it again")
    found = []
    for name, box in zip(findings, boxes, strict=True):
        if name not in CHESTX_DET10.label_names:
            raise UserError(
                f"{place}: {name!r} is not one of {', '.join(CHESTX_DET10.label_names)}"
            )
        left, top, right, bottom = box_of(box, place)
        label = CHESTX_DET10.label_names.index(name)
        found.append((left, top, right - left, bottom - top, label))
    return found
