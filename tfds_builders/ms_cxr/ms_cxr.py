"""TFDS builder of MS-CXR from its table (CSV or COCO JSON) and the images of MIMIC-CXR-JPG."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.ms_cxr import SPEC as MS_CXR
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
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.mimic_paths import EXCLUDE_WARNING, MimicImage, parse_path
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.regions import relative_boxes

_PAIRS = 1_162
_SPLITS = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}
# Versions 0.1 and 1.0.0 on PhysioNet hold files that are both named v1.0.0.
_TABLES = tuple(
    f"{place}MS_CXR_Local_Alignment_{version}.{kind}"
    for version in ("v1.1.0", "v1.0.0")
    for kind in ("csv", "json")
    for place in ("", "ms-cxr/")
)
_COLUMNS = ("category_name", "label_text", "path")
_NUMBERS = ("x", "y", "w", "h", "image_width", "image_height")


@dataclasses.dataclass
class MsCxrConfig(ManualConfig):
    """Options of MS-CXR.

    Attributes:
        split: "all": everything is test, as in zero-shot grounding; "published": the column `split` that
            version 1.1.0 has.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("all", "published")}
    VARIANTS: ClassVar = {"all": {"split": "all"}, "published": {"split": "published"}}

    split: str = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """One box.

    Attributes:
        place: where it is written, for messages.
        image: the image.
        category: finding.
        phrase: text.
        box: x, y, width, height in pixels.
        size: height and width of the image these pixels count in.
        split: as published; "" where there is none.
    """

    place: str
    image: MimicImage
    category: str
    phrase: str
    box: tuple[float, float, float, float]
    size: tuple[float, float]
    split: str


class MsCxr(ManualBuilder):
    """One example per image with its phrases and their boxes."""

    SPEC: ClassVar[DatasetSpec] = MS_CXR
    CONFIG = MsCxrConfig
    _settings: MsCxrConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
        return {
            "phrases": tfds.features.Sequence({"phrase": text, "category": text}),
            # TFDS stores no list of boxes inside a list without TensorFlow; `phrase` counts the phrases.
            "boxes": tfds.features.Sequence({"bbox": box, "label": np.int64, "phrase": np.int64}),
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The table, the images."""
        needed = (
            Needed(_TABLES, f"phrases and boxes, from {self.SPEC.homepage}"),
            Needed(("files",), "images of MIMIC-CXR-JPG"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table, _ = self._layout(folder)
        images: dict[str, list[_Row]] = {}
        for row in _read_json_rows(table) if table.suffix == ".json" else _read_csv_rows(table):
            images.setdefault(row.image.dicom_id, []).append(row)
        records = [self._record(rows) for rows in images.values()]
        pairs = sum(len(record.fields["phrases"]) for record in records)
        return Corpus(
            records=records,
            table=table,
            label_names=self.SPEC.label_names,
            notes=(f"pairs of image and phrase: {pairs} (published: {_PAIRS})", EXCLUDE_WARNING),
        )

    def _record(self, rows: list[_Row]) -> Record:
        """Example of all rows of one image.

        Raises:
            UserError: no or two splits where they are wanted.
        """
        image = rows[0].image
        split = "test"
        if self._settings.split == "published":
            found = {row.split for row in rows}
            if len(found) > 1 or not found <= set(_SPLITS):
                raise UserError(
                    f"{rows[0].place}: split of {image.dicom_id} is {', '.join(sorted(found)) or 'missing'}, "
                    "expected one of train, val, test; versions before 1.1.0 and the JSON have none: take "
                    "--option split=all"
                )
            split = _SPLITS[rows[0].split]
        phrases = list(dict.fromkeys((row.phrase, row.category) for row in rows))
        label = np.full(len(MS_CXR.label_names), UNKNOWN, np.int8)
        label[[MS_CXR.label_names.index(row.category) for row in rows]] = 1
        return Record(
            key=image.dicom_id,
            image=image.path,
            split=split,
            subject_id=image.subject_id,
            label=label,
            fields={
                "study_id": image.study_id,
                "text": "\n".join(phrase for phrase, _ in phrases),
                "phrases": [{"phrase": p, "category": c} for p, c in phrases],
            },
            source=[(row, phrases.index((row.phrase, row.category))) for row in rows],
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        del (
            height,
            width,
        )  # boxes count in pixels of the size that the table gives, whatever is on the disk
        boxes = []
        for row, phrase in record.source:
            label = MS_CXR.label_names.index(row.category)
            (box,) = relative_boxes([(*row.box, label)], *row.size)
            boxes.append({**box, "phrase": phrase})
        return {"boxes": boxes}


def _read_csv_rows(file: pathlib.Path) -> Iterator[_Row]:
    """Rows of the CSV: one box each; a phrase with several boxes has several rows."""
    for line, row in read_rows(file, (*_COLUMNS, *_NUMBERS)):
        place = f"{file} line {line}"
        x, y, w, h, width, height = (
            number(row[column], file=file, line=line, column=column) for column in _NUMBERS
        )
        yield _Row(
            place=place,
            image=parse_path(row["path"], place),
            category=_category(row["category_name"], place),
            phrase=row["label_text"],
            box=(x, y, w, h),
            size=(height, width),
            split=row.get("split", ""),
        )


def _read_json_rows(file: pathlib.Path) -> Iterator[_Row]:
    """The same from the COCO file, whose images have a `path` and annotations a `label_text`.

    Raises:
        UserError: not the published file.
    """
    content, source = read_json(file), str(file)
    images = {
        e["id"]: e for e in listed(content, "images", ("id", "path", "width", "height"), source)
    }
    names = {e["id"]: str(e["name"]) for e in listed(content, "categories", ("id", "name"), source)}
    keys = ("image_id", "category_id", "bbox", "label_text")
    for count, entry in enumerate(listed(content, "annotations", keys, source), start=1):
        place = f"{file} annotations entry {count}"
        image = images.get(entry["image_id"])
        if image is None:
            raise UserError(
                f"{place}: image {entry['image_id']!r} is not listed; download it again"
            )
        yield _Row(
            place=place,
            image=parse_path(str(image["path"]), place),
            category=_category(names.get(entry["category_id"], ""), place),
            phrase=" ".join(str(entry["label_text"]).split()),
            box=box_of(entry["bbox"], place),
            size=(float(image["height"]), float(image["width"])),
            split="",
        )


def _category(name: str, place: str) -> str:
    """Checks a finding.

    Raises:
        UserError: not one of the eight.
    """
    if name not in MS_CXR.label_names:
        raise UserError(f"{place}: {name!r} is not one of {', '.join(MS_CXR.label_names)}")
    return name
