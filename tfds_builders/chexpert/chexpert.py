"""TFDS builder of CheXpert, small or full, with the reports of CheXpert Plus where its table is there."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.chexpert import SPEC as CHEXPERT
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.chexpert_labels import label_cells
from tfds_builders.exclusive_positives import ExcludingConfig, exclude_patients, option_files
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.report_fields import section_fields

_PLACES = ("", "CheXpert-v1.0-small/", "CheXpert-v1.0/")
_HOLDOUT = 0.02
_SEX = {"male": "M", "female": "F", "unknown": "", "": ""}
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
_REPORTS = "df_chexpert_plus_*.csv"
_REPORT_COLUMNS = (
    "path_to_image",
    "report",
    "section_narrative",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_findings",
    "section_impression",
)


@dataclasses.dataclass
class ChexpertFilesConfig(ManualConfig):
    """Options of every dataset that is made from the files of CheXpert.

    Attributes:
        reports: "auto" takes those of CheXpert Plus when its table is there; "require"; "none".
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "reports": ("auto", "require", "none")}

    reports: str = "auto"


@dataclasses.dataclass
class ChexpertConfig(ChexpertFilesConfig, ExcludingConfig):
    """Options of CheXpert.

    Attributes:
        split: "official": train.csv and valid.csv are train and validation; "holdout": 2 % of the patients
            of train.csv, by a hash, are validation, and valid.csv is test.
    """

    CHOICES: ClassVar = {
        **ChexpertFilesConfig.CHOICES,
        **ExcludingConfig.CHOICES,
        "split": ("official", "holdout"),
    }
    VARIANTS: ClassVar = {"official": {"split": "official"}, "holdout": {"split": "holdout"}}

    split: str = "official"


class ChexpertFiles(ManualBuilder):
    """Reader of the official files; examples are radiographs with labels, view, sex, age and report."""

    SPEC: ClassVar[DatasetSpec] = CHEXPERT
    CONFIG = ChexpertFilesConfig
    _settings: ChexpertFilesConfig

    def extra_features(self) -> dict[str, Any]:
        return dict.fromkeys(("indication", "comparison"), tfds.features.Text())

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        reports = self._reports_file(folder)
        return self._tables(folder) + ((reports,) if reports else ())

    def _tables(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """train.csv and valid.csv."""
        needed = [
            Needed(tuple(f"{place}{name}.csv" for place in _PLACES), what)
            for name, what in (("train", "labels of the training set"), ("valid", "expert labels"))
        ]
        return require_layout(folder, self.SPEC, needed)

    def _reports_file(self, folder: pathlib.Path) -> pathlib.Path | None:
        """The table of CheXpert Plus, if it is there and wanted.

        Raises:
            UserError: required but not there, or several.
        """
        if self._settings.reports == "none":
            return None
        found = sorted(file for place in _PLACES for file in (folder / place).glob(_REPORTS))
        if len(found) > 1:
            raise UserError(
                f"{folder} holds several tables of CheXpert Plus: "
                f"{', '.join(f.name for f in found)}; keep one"
            )
        if not found and self._settings.reports == "require":
            raise UserError(
                f"{folder} does not hold df_chexpert_plus_240401.csv (the reports). {self.SPEC.access}"
            )
        return found[0] if found else None

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        """Everything, with train.csv as train and valid.csv as validation."""
        train, valid = self._tables(folder)
        reports_file = self._reports_file(folder)
        reports = dict(_read_reports(reports_file)) if reports_file else {}
        records = list(_read_records(folder, train, "train", reports))
        records += _read_records(folder, valid, "validation", reports)
        if reports_file and not any(record.fields["text"] for record in records):
            raise UserError(
                f"{reports_file}: no path_to_image is one of {train.name} or {valid.name}; take the "
                "published files unchanged, or --option reports=none"
            )
        return Corpus(
            records=records,
            table=train,
            label_names=CHEXPERT.label_names,
            expected=CHEXPERT.expected_counts,
        )


class Chexpert(ChexpertFiles):
    """CheXpert as published, or with a validation set of its own."""

    CONFIG = ChexpertConfig
    _settings: ChexpertConfig

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        excluded = option_files(self._settings.exclude, "exclude")
        return super().table_files(folder) + excluded

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        corpus = exclude_patients(super().read_corpus(folder), self._settings, exclusive="all")
        if self._settings.split == "official":
            return corpus
        training = {r.subject_id for r in corpus.records if r.split == "train"}
        places = hash_splits(training, (1 - _HOLDOUT, _HOLDOUT), splits=("train", "validation"))
        moved = [
            dataclasses.replace(r, split=places[r.subject_id] if r.split == "train" else "test")
            for r in corpus.records
        ]
        expected = corpus.expected.get("validation")
        return dataclasses.replace(
            corpus, records=moved, expected={} if expected is None else {"test": expected}
        )


def _read_records(
    folder: pathlib.Path, file: pathlib.Path, split: str, reports: dict[str, dict[str, str]]
) -> Iterator[Record]:
    """Examples of one table."""
    blank = {**section_fields("", ""), "indication": "", "comparison": ""}
    for line, row in read_rows(file, (*_COLUMNS, *CHEXPERT.label_names)):
        # CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg
        parts = row["Path"].split("/")
        if len(parts) != 5:
            raise UserError(
                f"{file} line {line}: Path is {row['Path']!r}, expected "
                "CheXpert-v1.0/SPLIT/PATIENT/STUDY/VIEW.jpg"
            )
        name = "/".join(parts[1:])
        frontal = row["Frontal/Lateral"].lower() == "frontal"
        age = row["Age"]
        yield Record(
            key=name,
            image=(file.parent / name).relative_to(folder).as_posix(),
            split=split,
            subject_id=parts[2],
            label=label_cells(row, CHEXPERT.label_names, file=file, line=line),
            fields={
                **reports.get(_stem(name), blank),
                "study_id": f"{parts[2]}/{parts[3]}",
                "view_position": row["AP/PA"] if frontal else "LATERAL",
                "sex": _SEX.get(row["Sex"].lower(), row["Sex"]),
                "age": number(age, file=file, line=line, column="Age") if age else float("nan"),
            },
        )


def _read_reports(file: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Image (path without suffix) and text features."""
    for _, row in read_rows(file, _REPORT_COLUMNS):
        fields = section_fields(row["section_findings"], row["section_impression"])
        fields["text"] = fields["text"] or row["section_narrative"] or row["report"]
        fields["indication"] = row["section_clinical_history"] or row["section_history"]
        fields["comparison"] = row["section_comparison"]
        yield _stem(row["path_to_image"]), fields


def _stem(path: str) -> str:
    """Path without its suffix: CheXpert Plus names the same images .jpg or .png."""
    return path.rpartition(".")[0]
