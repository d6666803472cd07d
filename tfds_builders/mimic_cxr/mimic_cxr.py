"""TFDS builder of MIMIC-CXR from the official files of MIMIC-CXR-JPG and the reports of MIMIC-CXR."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.mimic_cxr import SPEC as MIMIC_CXR
from medvlp_jax.data.images import ImageError
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.chexpert_labels import label_cells
from tfds_builders.exclusive_positives import ExcludingConfig, exclude_patients, option_files
from tfds_builders.manual_builder import (
    UNKNOWN,
    Corpus,
    ManualBuilder,
    Record,
)
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.report_fields import report_fields

_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_TABLES = "https://physionet.org/content/mimic-cxr-jpg/2.0.0/"
_METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "ViewPosition",
    "StudyDate",
    "StudyTime",
)


@dataclasses.dataclass
class MimicCxrConfig(ExcludingConfig):
    """Options of MIMIC-CXR.

    Attributes:
        labeler: whose labels: "chexpert" or "negbio" (mimic-cxr-2.0.0-negbio.csv.gz).
    """

    CHOICES: ClassVar = {**ExcludingConfig.CHOICES, "labeler": ("chexpert", "negbio")}

    labeler: str = "chexpert"


@dataclasses.dataclass(frozen=True, slots=True)
class _Image:
    """A row of the metadata table."""

    dicom_id: str
    subject_id: str
    study_id: str
    view: str
    date: str
    time: float

    @property
    def study_path(self) -> str:
        """`p10/p10000032/s50414267`, below `files` of images and of reports."""
        return f"p{self.subject_id[:2]}/p{self.subject_id}/s{self.study_id}"


class MimicCxrFiles(ManualBuilder):
    """Reader of the official files; examples are radiographs with report, labels, view and study before."""

    SPEC: ClassVar[DatasetSpec] = MIMIC_CXR

    def labeler(self) -> str:
        """Whose labels are read."""
        return "chexpert"

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        names = ("indication", "comparison", "prior_study_id")
        return {**dict.fromkeys(names, text), "days": np.int32}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:3]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Metadata, split and label table, images, reports."""
        labels = f"mimic-cxr-2.0.0-{self.labeler()}.csv.gz"
        reports = (
            "the reports: unzip mimic-cxr-reports.zip of https://physionet.org/content/mimic-cxr/2.0.0/ "
            "with -d mimic-cxr-reports"
        )
        needed = (
            Needed(("mimic-cxr-2.0.0-metadata.csv.gz",), f"views and dates, from {_TABLES}"),
            Needed(("mimic-cxr-2.0.0-split.csv.gz",), f"the official split, from {_TABLES}"),
            Needed((labels,), f"labels, from {_TABLES}"),
            Needed(("files",), f"images p10/p10000032/s50414267/*.jpg, from {_TABLES}"),
            Needed(("mimic-cxr-reports/files",), reports),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_tables(self, folder: pathlib.Path) -> Corpus:
        """All examples in the official split; whether the reports are there is not looked at yet.

        Raises:
            UserError: wrong layout or table.
        """
        metadata, splits_file, labels_file, _, reports = self._layout(folder)
        images = list(_read_images(metadata))
        splits = _read_splits(splits_file)
        labels = _read_labels(labels_file)
        time_line = _time_line(images)
        unlabelled = np.full(len(MIMIC_CXR.label_names), UNKNOWN, np.int8)
        records = []
        for image in images:
            if image.dicom_id not in splits:
                raise UserError(
                    f"{splits_file} does not list dicom_id {image.dicom_id} of {metadata.name}; take both "
                    "tables of one release"
                )
            prior, days = time_line[image.study_id]
            records.append(
                Record(
                    key=image.dicom_id,
                    image=f"files/{image.study_path}/{image.dicom_id}.jpg",
                    split=splits[image.dicom_id],
                    subject_id=image.subject_id,
                    label=labels.get(image.study_id, unlabelled),
                    fields={
                        "study_id": image.study_id,
                        "view_position": image.view,
                        "prior_study_id": prior,
                        "days": days,
                    },
                    source=reports / f"{image.study_path}.txt",
                )
            )
        return Corpus(
            records=records,
            table=metadata,
            label_names=MIMIC_CXR.label_names,
            expected=MIMIC_CXR.expected_counts,
        )

    def drop_without_report(self, folder: pathlib.Path, corpus: Corpus) -> Corpus:
        """Takes out examples whose report is not there, if the user allows it.

        Raises:
            UserError: reports are missing and `missing_images` is "refuse".
        """
        reports = self._layout(folder)[4]
        there = {path: path.is_file() for path in {record.source for record in corpus.records}}
        missing = sorted(str(p.relative_to(reports)) for p, exists in there.items() if not exists)
        if not missing:
            return corpus
        if self._settings.missing_images == "refuse":
            raise UserError(
                f"{len(missing)} of {len(there)} reports are not in {reports}: "
                f"{', '.join(missing[:5])}. Unpack mimic-cxr-reports.zip completely, or build what is "
                "there: --option missing_images=skip"
            )
        records = [record for record in corpus.records if there[record.source]]
        dropped = {**corpus.dropped, "missing_report": len(corpus.records) - len(records)}
        return dataclasses.replace(corpus, records=records, dropped=dropped)

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        del height, width
        try:
            report = record.source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ImageError(f"report {record.source.name} cannot be read: {error}") from error
        return report_fields(report)


class MimicCxr(MimicCxrFiles):
    """MIMIC-CXR in the official split."""

    CONFIG = MimicCxrConfig
    _settings: MimicCxrConfig

    def labeler(self) -> str:
        return self._settings.labeler

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        excluded = option_files(self._settings.exclude, "exclude")
        return super().table_files(folder) + excluded

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        if self._settings.exclude_5x200 == "yes" and self._settings.labeler != "chexpert":
            raise UserError(
                "option exclude_5x200=yes needs labeler=chexpert, whose labels mimic_5x200 is chosen by; or "
                "give --option exclude=FILE"
            )
        corpus = exclude_patients(self.read_tables(folder), self._settings, exclusive="five")
        return self.drop_without_report(folder, corpus)


def _read_images(file: pathlib.Path) -> Iterable[_Image]:
    for line, row in read_rows(file, _METADATA_COLUMNS):
        time = row["StudyTime"]
        try:
            datetime.datetime.strptime(row["StudyDate"], "%Y%m%d")
        except ValueError:
            raise UserError(
                f"{file} line {line}: StudyDate is {row['StudyDate']!r}, expected YYYYMMDD"
            ) from None
        yield _Image(
            dicom_id=row["dicom_id"],
            subject_id=row["subject_id"],
            study_id=row["study_id"],
            view=row["ViewPosition"],
            date=row["StudyDate"],
            time=number(time, file=file, line=line, column="StudyTime") if time else 0.0,
        )


def _read_splits(file: pathlib.Path) -> dict[str, str]:
    """dicom_id -> split."""
    splits = {}
    for line, row in read_rows(file, ("dicom_id", "split")):
        if row["split"] not in _SPLITS:
            raise UserError(
                f"{file} line {line}: split is {row['split']!r}, expected {', '.join(_SPLITS)}"
            )
        splits[row["dicom_id"]] = _SPLITS[row["split"]]
    return splits


def _read_labels(file: pathlib.Path) -> dict[str, np.ndarray]:
    """study_id -> label vector; the eight studies that the labelers left out are not in it."""
    names = MIMIC_CXR.label_names
    rows = read_rows(file, ("study_id", *names))
    return {row["study_id"]: label_cells(row, names, file=file, line=line) for line, row in rows}


def _time_line(images: Iterable[_Image]) -> dict[str, tuple[str, int]]:
    """study_id -> the patient's study before ("" for the first) and days since the first one."""
    studies: dict[str, dict[str, tuple[str, float]]] = {}
    for image in images:
        known = studies.setdefault(image.subject_id, {})
        moment = (image.date, image.time)
        known[image.study_id] = min(known.get(image.study_id, moment), moment)
    found: dict[str, tuple[str, int]] = {}
    for known in studies.values():
        ordered = sorted(known, key=lambda study: (known[study], study))
        first = datetime.datetime.strptime(known[ordered[0]][0], "%Y%m%d")
        for prior, study in zip(["", *ordered], ordered, strict=False):
            day = datetime.datetime.strptime(known[study][0], "%Y%m%d")
            found[study] = (prior, (day - first).days)
    return found
