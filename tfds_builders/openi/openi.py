"""TFDS builder of Open-i from its XML reports and PNG images."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.openi import SPEC as OPENI
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import (
    UNKNOWN,
    Corpus,
    ManualBuilder,
    ManualConfig,
    Record,
)
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.report_fields import section_fields

_ADDRESS = "https://openi.nlm.nih.gov/imgs/collections"
_FRACTIONS = (0.7, 0.1, 0.2)
_PROJECTIONS = "indiana_projections.csv"
_UNINDEXED = {"no indexing"}

# Label -> MeSH headings (the part before the qualifiers, in lower case) that mean it.
_HEADINGS: dict[str, tuple[str, ...]] = {
    "Normal": ("normal",),
    "Atelectasis": ("pulmonary atelectasis",),
    "Fracture": ("fractures, bone",),
    "Emphysema": ("emphysema", "pulmonary emphysema"),
    "Hiatal Hernia": ("hernia, hiatal",),
    "Edema": ("pulmonary edema",),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Support Devices": ("catheters, indwelling", "implanted medical device", "medical device",
                        "tube, inserted", "stents"),
}  # fmt: skip


@dataclasses.dataclass
class OpeniConfig(ManualConfig):
    """Options of Open-i.

    Attributes:
        blank_text: "drop" leaves out images whose report has neither findings nor impression; "keep".
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "blank_text": ("drop", "keep")}

    blank_text: str = "drop"


@dataclasses.dataclass(frozen=True)
class Report:
    """What one XML file says.

    Attributes:
        uid: e.g. "CXR1"; each report is of another patient.
        sections: section name in lower case -> text.
        mesh: MeSH headings with their qualifiers, as coded by hand.
        images: ids of its images, e.g. "CXR1_1_IM-0001-3001".
    """

    uid: str
    sections: dict[str, str]
    mesh: tuple[str, ...]
    images: tuple[str, ...]


class Openi(ManualBuilder):
    """Radiographs with report sections and MeSH headings, split by patient."""

    SPEC: ClassVar[DatasetSpec] = OPENI
    CONFIG = OpeniConfig
    DOWNLOADS: ClassVar[tuple[Download, ...]] = (
        Download(f"{_ADDRESS}/NLMCXR_reports.tgz", "NLMCXR_reports.tgz", unpack=True),
        # The archive of images has no folder of its own.
        Download(f"{_ADDRESS}/NLMCXR_png.tgz", "NLMCXR_png/NLMCXR_png.tgz", unpack=True),
    )
    _settings: OpeniConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        return {"indication": text, "comparison": text, "mesh": tfds.features.Sequence(text)}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return tuple(sorted(self._layout(folder)[0].glob("*.xml")))

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Folder of reports, folder of images."""
        needed = (
            Needed(
                ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology"),
                "reports: tar xzf NLMCXR_reports.tgz",
            ),
            Needed(
                ("NLMCXR_png", "images", "images_normalized"),
                "images: mkdir NLMCXR_png; tar xzf NLMCXR_png.tgz -C NLMCXR_png",
            ),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        reports_folder, images_folder = self._layout(folder)
        files = sorted(reports_folder.glob("*.xml"))
        if not files:
            raise UserError(
                f"{reports_folder} holds no .xml files; unpack NLMCXR_reports.tgz again"
            )
        reports = [read_report(file) for file in files]
        projections = find_one(folder, (_PROJECTIONS,))
        views = dict(_read_views(projections)) if projections else {}
        splits = hash_splits({report.uid for report in reports}, _FRACTIONS)
        images = images_folder.relative_to(folder)
        records = [
            Record(
                key=image,
                image=(images / f"{image}.png").as_posix(),
                split=splits[report.uid],
                subject_id=report.uid,
                label=mesh_labels(report.mesh),
                fields={
                    **section_fields(
                        report.sections.get("findings", ""), report.sections.get("impression", "")
                    ),
                    "indication": report.sections.get("indication", ""),
                    "comparison": report.sections.get("comparison", ""),
                    "mesh": list(report.mesh),
                    "study_id": report.uid,
                    "view_position": views.get(_view_key(image), ""),
                },
            )
            for report in reports
            for image in report.images
        ]
        kept = [r for r in records if r.fields["text"] or self._settings.blank_text == "keep"]
        return Corpus(
            records=kept,
            table=reports_folder,
            label_names=self.SPEC.label_names,
            expected=self.SPEC.expected_counts,
            dropped={"blank_text": len(records) - len(kept)},
        )


def read_report(file: pathlib.Path) -> Report:
    """Reads one XML report.

    Raises:
        UserError: not XML, or without the id.
    """
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        raise UserError(f"{file} is not XML ({error}); unpack NLMCXR_reports.tgz again") from None
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise UserError(f"{file} has no element uId with an id; unpack NLMCXR_reports.tgz again")
    sections = {
        part.get("Label", "").lower(): " ".join("".join(part.itertext()).split())
        for part in root.iter("AbstractText")
    }
    mesh = tuple(" ".join((part.text or "").split()) for part in root.iterfind("MeSH/major"))
    images = tuple(image.get("id", "") for image in root.iter("parentImage"))
    return Report(uid=uid.get("id", ""), sections=sections, mesh=mesh, images=images)


def mesh_labels(mesh: tuple[str, ...]) -> np.ndarray:
    """int8 [K]: 1 where a heading of the label is coded, else 0; all unknown when nothing was coded."""
    found = {heading.partition("/")[0].strip().lower() for heading in mesh} - {""}
    if not found - _UNINDEXED:
        return np.full(len(OPENI.label_names), UNKNOWN, np.int8)
    return np.asarray(
        [bool(found & set(_HEADINGS.get(name, (name.lower(),)))) for name in OPENI.label_names],
        np.int8,
    )


def _read_views(file: pathlib.Path) -> Iterator[tuple[tuple[str, str], str]]:
    """(number of the report, image) and FRONTAL or LATERAL, as others have assigned them."""
    for _, row in read_rows(file, ("uid", "filename", "projection")):
        yield _view_key(f"CXR{row['uid']}_{row['filename']}"), row["projection"].upper()


def _view_key(image: str) -> tuple[str, str]:
    """Number of the report and the image's own id: the releases write what is between differently."""
    number = re.match(r"CXR(\d+)", image)
    own = re.search(r"IM-[\d-]+", image)
    return (number[1] if number else "", own[0] if own else image)
