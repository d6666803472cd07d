"""TFDS builder of PatchCamelyon from the official HDF5 files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from medvlp_jax.data.datasets.pcam import SPEC as PCAM
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.pcam.h5_rows import H5Rows, decompressed
from tfds_builders.split_leaks import leak_notes

_SHORT = {"train": "train", "validation": "valid", "test": "test"}
_NAME = "camelyonpatch_level_2_split_{split}_{part}.h5"
_META = "camelyonpatch_level_2_split_{split}_meta.csv"
_ZENODO = "https://zenodo.org/record/2546921/files"
# Sizes and SHA-256 of tensorflow_datasets' checksums.tsv of patch_camelyon.
_FILES = (
    (
        "train",
        "x",
        6_421_353_462,
        "d619e741468a7ab35c7e4a75e6821b7e7e6c9411705d45708f2a0efc8960656c",
    ),
    ("train", "y", 21_378, "b74126d2c01b20d3661f9b46765d29cf4e4fba6faba29c8e0d09d406331ab75a"),
    ("valid", "x", 805_965_320, "f82ee1670d027b4ec388048d9eabc2186b77c009655dae76d624c0ecb053ccb2"),
    ("valid", "y", 3_038, "ce1ae30f08feb468447971cfd0472e7becd0ad96d877c64120c72571439ae48c"),
    ("test", "x", 800_875_929, "79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245"),
    ("test", "y", 3_040, "0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef"),
)


class Pcam(ManualBuilder):
    """Patches with their label and, where the table is there, their slide."""

    SPEC: ClassVar[DatasetSpec] = PCAM
    DOWNLOADS: ClassVar[tuple[Download, ...]] = tuple(
        Download(
            url=f"{_ZENODO}/{_NAME.format(split=split, part=part)}.gz",
            path=f"{_NAME.format(split=split, part=part)}.gz",
            checksum=f"sha256:{checksum}",
            size=size,
        )
        for split, part, size, checksum in _FILES
    )

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The small files of labels."""
        return self._layout(folder)[1::2]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Images and labels of train, validation and test."""
        needed = [
            Needed((_NAME.format(split=split, part=part),), f"or .h5.gz, from {self.SPEC.homepage}")
            for split in _SHORT.values()
            for part in ("x", "y")
        ]
        return require_layout(folder, self.SPEC, needed)

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        del folder
        return self._images[record.split][record.source]

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        files = [decompressed(file) for file in self._layout(folder)]
        self._images = {s: H5Rows(files[2 * i], "x") for i, s in enumerate(_SHORT)}
        records: list[Record] = []
        for i, split in enumerate(_SHORT):
            records += self._read_split(folder, split, files[2 * i], files[2 * i + 1])
        return Corpus(
            records=records,
            table=files[1],
            label_names=self.SPEC.label_names,
            expected=self.SPEC.expected_counts,
            notes=leak_notes(records, "slides are"),
            patient_hint="add the *_meta.csv files, which name the slides",
            shared_subjects=True,  # the published split is kept as it is
        )

    def _read_split(
        self, folder: pathlib.Path, split: str, x: pathlib.Path, y: pathlib.Path
    ) -> Iterator[Record]:
        """Patches of a split.

        Raises:
            UserError: images, labels and slides do not go together.
        """
        images, rows = self._images[split], H5Rows(y, "y")
        labels = np.asarray(rows[:]).reshape(len(rows), -1)
        rows.close()
        if images.shape[1:] != (96, 96, 3) or images.dtype != np.uint8:
            raise UserError(
                f"{x}: x is {images.dtype} {images.shape}, expected uint8 [n, 96, 96, 3]"
            )
        if labels.shape != (len(images), 1) or not np.isin(labels, (0, 1)).all():
            raise UserError(
                f"{y}: y is {labels.shape} up to {labels.max() if labels.size else 0}, expected 0 or 1 for "
                f"each of the {len(images)} images"
            )
        slides = _read_slides(folder, split, len(images))
        for row, (label, slide) in enumerate(zip(labels.astype(np.int8), slides, strict=True)):
            yield Record(f"{split}/{row}", "", split, slide, label, source=row)


def _read_slides(folder: pathlib.Path, split: str, count: int) -> list[str]:
    """Slide of each patch; "" where the table is not there.

    Raises:
        UserError: the table has another number of rows.
    """
    file = find_one(folder, (_META.format(split=_SHORT[split]),))
    if file is None:
        return [""] * count
    slides = [row["wsi"] for _, row in read_rows(file, ("wsi",))]
    if len(slides) != count:
        raise UserError(f"{file} has {len(slides)} rows, but there are {count} images")
    return slides
