"""TFDS builder of PadChest from the official table and the archives of 16-bit PNG images."""

from __future__ import annotations

import ast
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.padchest import SPEC as PADCHEST
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import UNKNOWN, Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.zipped_images import ZippedImages, find_place

_FRACTIONS = (0.7, 0.1, 0.2)
_OLDEST = 120
_PHYSICIAN = "Physician"
_BLANK = ("", "nan", "None")
# They speak of the report or the picture, not of the patient: alone they leave all findings unknown.
_NO_FINDINGS = frozenset({"exclude", "unchanged", "suboptimal study"})
_COLUMNS = (
    "ImageID",
    "ImageDir",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "PhotometricInterpretation_DICOM",
    "Report",
    "MethodLabel",
    "Labels",
    "Localizations",
)


@dataclasses.dataclass
class PadchestConfig(ManualConfig):
    """Options of PadChest.

    Attributes:
        labelled_by: "anyone", or "physicians" keeps the images whose labels physicians assigned.
        blank_text: "drop" leaves out images whose report is blank, "keep" stores them.
        monochrome1: "invert" turns images whose table row says MONOCHROME1, which show bones in black; "keep"
            stores the values of the file.
    """

    CHOICES: ClassVar = {
        **ManualConfig.CHOICES,
        "labelled_by": ("anyone", "physicians"),
        "blank_text": ("drop", "keep"),
        "monochrome1": ("invert", "keep"),
    }
    VARIANTS: ClassVar = {
        "all": {"labelled_by": "anyone"},
        "physicians": {"labelled_by": "physicians"},
    }

    labelled_by: str = "anyone"
    blank_text: str = "drop"
    monochrome1: str = "invert"


class Padchest(ManualBuilder):
    """Radiographs with report, findings, locations, projection, sex and age."""

    SPEC: ClassVar[DatasetSpec] = PADCHEST
    CONFIG = PadchestConfig
    _settings: PadchestConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        lists = dict.fromkeys(("labels", "localizations", "cuis"), tfds.features.Sequence(text))
        return {**lists, "label_method": text}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        needed = (
            Needed(
                ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",),
                f"reports and labels, from {self.SPEC.homepage}",
            ),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            image = super().read_pixels(folder, record)
        else:
            image = self._zipped.read(record.key)
        return 255 - image if record.source else image

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        (table,) = self.table_files(folder)
        self._zipped = ZippedImages(sorted((*folder.glob("*.zip"), *folder.glob("images/*.zip"))))
        settings = self._settings
        found = list(_read_images(table))
        if not found:
            raise UserError(f"{table} has no rows; download it again")
        names = tuple(sorted({name for image in found for name in image.labels} - _NO_FINDINGS))
        splits = hash_splits({image.patient for image in found}, _FRACTIONS)
        records, dropped = [], {"blank_text": 0, "not_labelled_by_physicians": 0}
        for image in found:
            if settings.labelled_by == "physicians" and image.method != _PHYSICIAN:
                dropped["not_labelled_by_physicians"] += 1
            elif settings.blank_text == "drop" and not image.fields["text"]:
                dropped["blank_text"] += 1
            else:
                places = (image.folder, f"images/{image.folder}", "images")
                records.append(
                    Record(
                        key=image.name,
                        image=find_place(folder, image.name, places, self._zipped),
                        split=splits[image.patient],
                        subject_id=image.patient,
                        label=_label(image.labels, names),
                        fields=image.fields,
                        source=image.inverted and settings.monochrome1 == "invert",
                    )
                )
        if settings.labelled_by == "anyone":
            del dropped["not_labelled_by_physicians"]
        return Corpus(records=records, table=table, label_names=names, dropped=dropped)


@dataclasses.dataclass(frozen=True, slots=True)
class _Image:
    """One row of the table.

    Attributes:
        name: of the file.
        folder: number of the archive.
        patient: pseudonym.
        labels: findings and diagnoses of the report.
        method: who assigned them.
        inverted: whether high values are black.
        fields: features that are taken over.
    """

    name: str
    folder: str
    patient: str
    labels: tuple[str, ...]
    method: str
    inverted: bool
    fields: dict[str, Any]


def _read_images(file: pathlib.Path) -> Iterator[_Image]:
    """Rows of the table."""
    for line, row in read_rows(file, _COLUMNS):
        labels = _names(row["Labels"], file, line, "Labels")
        sex = row["PatientSex_DICOM"]
        yield _Image(
            name=row["ImageID"],
            folder=row["ImageDir"].removesuffix(".0"),
            patient=row["PatientID"],
            # Some names are spelled with and without capitals.
            labels=tuple(dict.fromkeys(name.lower() for name in labels)),
            method=row["MethodLabel"],
            inverted=row["PhotometricInterpretation_DICOM"] == "MONOCHROME1",
            fields={
                "text": row["Report"],
                "study_id": row["StudyID"],
                "view_position": row["Projection"],
                "sex": "" if sex in _BLANK else sex,
                "age": _age(row["StudyDate_DICOM"], row["PatientBirth"]),
                "labels": list(labels),
                "localizations": list(_names(row["Localizations"], file, line, "Localizations")),
                "cuis": re.findall(r"C\d{7}", row.get("labelCUIS", "")),
                "label_method": row["MethodLabel"],
            },
        )


def _names(cell: str, file: pathlib.Path, line: int, column: str) -> tuple[str, ...]:
    """Names of a cell like `['pleural effusion', ' nodule']`, blanks tidied; () for a blank cell.

    Raises:
        UserError: not such a list.
    """
    if cell in _BLANK:
        return ()
    try:
        names = ast.literal_eval(cell)
        if not isinstance(names, list):
            raise ValueError
    except (ValueError, SyntaxError):
        raise UserError(
            f"{file} line {line}: {column} is {cell[:60]!r}, expected a list like ['nodule']; take the "
            "published file unchanged"
        ) from None
    tidy = (" ".join(str(name).split()) for name in names)
    return tuple(dict.fromkeys(name for name in tidy if name))


def _label(found: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """int8 [K]: 1 for each finding of the report, else 0; all unknown when it names none, not even
    `normal`."""
    present = set(found) - _NO_FINDINGS
    if not present:
        return np.full(len(names), UNKNOWN, np.int8)
    return np.asarray([name in present for name in names], np.int8)


def _age(date: str, birth: str) -> float:
    """Years between a date YYYYMMDD and a year of birth; NaN where one is missing or impossible."""
    try:
        years = int(date[:4]) - int(float(birth))
    except ValueError:
        return math.nan
    return float(years) if 0 <= years <= _OLDEST else math.nan
