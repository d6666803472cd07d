"""TFDS builder of QUILT-1M from its lookup table and archives of images, which are read as they are."""

from __future__ import annotations

import ast
import dataclasses
import math
import pathlib
import posixpath
import re
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.quilt_1m import SPEC as QUILT_1M
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.numbered_names import NumberedNames
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.split_leaks import leak_notes
from tfds_builders.zipped_images import ZippedImages, find_place

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
_SUBSETS = {"all": (), "quilt": ("quilt",), "no_pubmed": ("quilt", "openpath", "laion")}
_TABLE = "quilt_1M_lookup.csv"
_COLUMNS = ("image_path", "caption", "subset", "split")
_NO_LABEL = np.zeros(0, np.int8)


@dataclasses.dataclass
class Quilt1mConfig(ManualConfig):
    """Options of QUILT-1M.

    Attributes:
        subset: "all" sources, "quilt" (the videos alone), or "no_pubmed" (without the research papers, whose
            figures other collections have, too).
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "subset": tuple(_SUBSETS)}
    VARIANTS: ClassVar = {name: {"subset": name} for name in _SUBSETS}

    subset: str = "all"


class Quilt1m(ManualBuilder):
    """One example per pair of image and caption, with source, pathology, magnification and UMLS ids."""

    name = "quilt_1m"  # of the class name TFDS would make quilt1m
    SPEC: ClassVar[DatasetSpec] = QUILT_1M
    CONFIG = Quilt1mConfig
    _settings: Quilt1mConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        return {
            "subset": text,
            "pathology": text,
            "roi_text": text,
            "magnification": np.float32,
            "cuis": tfds.features.Sequence(text),
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return require_layout(
            folder, self.SPEC, (Needed((_TABLE,), "captions, with the archives of images"),)
        )

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        return self._zipped.read(record.source)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        (table,) = self.table_files(folder)
        self._zipped = ZippedImages(sorted(folder.glob("*.zip")))
        parts = (p.name for p in sorted(folder.glob("images_part_*")) if p.is_dir())
        unpacked = (place for part in parts for place in (f"{part}/quilt_1m", part))
        places = ("quilt_1m", "images", ".", *unpacked)
        wanted = _SUBSETS[self._settings.subset]
        key_of, counts, dropped = NumberedNames(), Counter(), Counter({"blank_text": 0})
        records = []
        for line, row in read_rows(table, _COLUMNS):
            counts[row["subset"]] += 1
            if wanted and row["subset"] not in wanted:
                dropped["other_subset"] += 1
                continue
            if not row["caption"]:
                dropped["blank_text"] += 1
                continue
            name = posixpath.basename(row["image_path"])
            records.append(
                Record(
                    key=key_of(name),
                    image=find_place(folder, name, places, self._zipped),
                    split=_split(row["split"], table, line),
                    subject_id=name,
                    label=_NO_LABEL,
                    fields=_fields(row, name),
                    source=name,
                )
            )
        if not records:
            raise UserError(f"{table} lists no image of the subset {self._settings.subset!r}")
        found = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        return Corpus(
            records=records,
            table=table,
            label_names=(),
            dropped=dropped,
            notes=(
                f"rows by source: {found}",
                f"images: {key_of.images}; frames of one video are not marked, so the published split may "
                "have one video in training and in validation",
                *leak_notes(records, "images have captions"),
            ),
            # An image with several captions may be listed in two parts.
            shared_subjects=True,
        )


def _split(cell: str, file: pathlib.Path, line: int) -> str:
    """Our name of a split.

    Raises:
        UserError: an unknown one.
    """
    if cell not in _SPLITS:
        raise UserError(f"{file} line {line}: split is {cell!r}, expected train, val or test")
    return _SPLITS[cell]


def _fields(row: dict[str, str], name: str) -> dict[str, Any]:
    """Features of one row."""
    return {
        "text": row["caption"],
        "study_id": name,
        "subset": row["subset"],
        "pathology": _list_text(row.get("pathology", "")),
        "roi_text": _list_text(row.get("roi_text", "")),
        "magnification": _magnification(row.get("magnification", "")),
        "cuis": list(dict.fromkeys(re.findall(r"\bC\d{7}\b", row.get("med_umls_ids", "")))),
    }


def _list_text(cell: str) -> str:
    """Texts of a cell like `['one', 'two']`, with `; ` between them; other cells as they are."""
    if not cell.startswith("["):
        return cell
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell
    return "; ".join(text for text in (" ".join(str(v).split()) for v in values) if text)


def _magnification(cell: str) -> float:
    """The number that the cell holds, as published; NaN without one."""
    try:
        return float(cell)
    except ValueError:
        return math.nan
