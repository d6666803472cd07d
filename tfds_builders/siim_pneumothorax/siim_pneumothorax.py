"""TFDS builder of the SIIM-ACR Pneumothorax Segmentation challenge from the files on Kaggle."""

from __future__ import annotations

import io
import pathlib
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.siim_pneumothorax import SPEC as SIIM_PNEUMOTHORAX
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import decode_run_lengths, mask_feature, stored_mask

_FRACTIONS = (0.7, 0.15, 0.15)
_FIRST_STAGE = {"rows": 10_675}
_IMAGES = ("dicom-images-train", "dicom-images-test", "stage_2_images")


class SiimPneumothorax(ManualBuilder):
    """Radiographs with masks of pneumothorax."""

    SPEC: ClassVar[DatasetSpec] = SIIM_PNEUMOTHORAX

    def extra_features(self) -> dict[str, Any]:
        return {"mask": mask_feature()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Table of masks, a folder of images."""
        needed = (
            Needed(("stage_2_train.csv", "train-rle.csv"), f"masks, from {self.SPEC.homepage}"),
            Needed(_IMAGES, f"DICOM images, from {self.SPEC.homepage}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table = self._layout(folder)[0]
        masks = _read_masks(table)
        paths = _find_images(folder)
        splits = hash_splits(set(masks), _FRACTIONS)
        records = [
            Record(
                key=name,
                image=paths.get(name, f"{_IMAGES[0]}/.../{name}.dcm"),
                split=splits[name],
                subject_id="",
                label=np.asarray([bool(runs)], np.int8),
                source=runs,
            )
            for name, runs in masks.items()
        ]
        first_stage = table.name.startswith("train-rle")
        return Corpus(
            records=records,
            table=table,
            label_names=self.SPEC.label_names,
            expected=_FIRST_STAGE if first_stage else self.SPEC.expected_counts,
            patient_hint="the challenge does not publish which images are of one patient",
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        mask = np.zeros((height, width), bool)
        for runs in record.source:
            mask |= decode_run_lengths(runs, height, width)
        return {"mask": io.BytesIO(stored_mask(mask, self._settings.size))}


def _read_masks(file: pathlib.Path) -> dict[str, list[str]]:
    """Image -> run lengths of its masks; none where the table says -1.

    Raises:
        UserError: an image with and without a mask, or an empty cell.
    """
    masks: dict[str, list[str]] = {}
    without = set()
    for line, row in read_rows(file, ("ImageId", "EncodedPixels")):
        name, runs = row["ImageId"], row["EncodedPixels"]
        if not runs:
            raise UserError(
                f"{file} line {line}: EncodedPixels is blank, expected -1 or run lengths"
            )
        found = masks.setdefault(name, [])
        if runs == "-1":
            without.add(name)
        else:
            found.append(runs)
        if found and name in without:
            raise UserError(
                f"{file} line {line}: {name} has a mask and -1; take the published file"
            )
    return masks


def _find_images(folder: pathlib.Path) -> dict[str, str]:
    """Image -> path relative to the folder; Kaggle nests each image in folders of study and series."""
    return {
        path.stem: path.relative_to(folder).as_posix()
        for place in _IMAGES
        for path in sorted((folder / place).rglob("*.dcm"))
    }
