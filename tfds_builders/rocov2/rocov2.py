"""TFDS builder of ROCOv2 from the files on Zenodo, whose archives are read as they are."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.rocov2 import SPEC as ROCOV2
from medvlp_jax.data.spec import DatasetSpec
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.split_leaks import leak_notes
from tfds_builders.zipped_images import ZippedImages, find_place

_PARTS = {"train": "train", "validation": "valid", "test": "test"}
_LICENCES = "license_information.csv"
_CONCEPT_NAMES = "cui_mapping.csv"
_FILES = (
    *(
        f"{part}_{name}"
        for part in _PARTS.values()
        for name in ("captions.csv", "concepts.csv", "concepts_manual.csv", "images.zip")
    ),
    _LICENCES,
    _CONCEPT_NAMES,
)
_NO_LABEL = np.zeros(0, np.int8)


class Rocov2(ManualBuilder):
    """Figures with captions, concepts, and licence and article of each."""

    SPEC: ClassVar[DatasetSpec] = ROCOV2
    DOWNLOADS: ClassVar[tuple[Download, ...]] = tuple(
        Download(f"{ROCOV2.homepage}/files/{name}?download=1", name) for name in _FILES
    )

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        lists = dict.fromkeys(("cuis", "cuis_manual", "concepts"), tfds.features.Sequence(text))
        return {**lists, "license": text, "source": text}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        optional = (
            find_one(folder, (name,))
            for name in (
                *(f"{part}_concepts_manual.csv" for part in _PARTS.values()),
                _CONCEPT_NAMES,
            )
        )
        return (*self._layout(folder), *(file for file in optional if file is not None))

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Licences, then captions and concepts of each split."""
        source = f"from {self.SPEC.homepage}"
        needed = [Needed((_LICENCES,), f"articles and licences, {source}")]
        for part in _PARTS.values():
            needed.append(Needed((f"{part}_captions.csv",), f"captions, {source}"))
            needed.append(Needed((f"{part}_concepts.csv",), f"concepts, {source}"))
        return require_layout(folder, self.SPEC, needed)

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        return self._zipped.read(f"{record.key}.jpg")

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        licences, *files = self._layout(folder)
        archives = (folder / f"{part}_images.zip" for part in _PARTS.values())
        self._zipped = ZippedImages([archive for archive in archives if archive.is_file()])
        sources = {
            row["ID"]: (row["PMCID"], row["Attribution"], row["Link"])
            for _, row in read_rows(licences, ("ID", "PMCID", "Attribution", "Link"))
        }
        mapping = find_one(folder, (_CONCEPT_NAMES,))
        rows = read_rows(mapping, ("CUI", "Canonical name")) if mapping else ()
        names = {row["CUI"]: row["Canonical name"] for _, row in rows}
        records, blank = [], 0
        for (split, part), captions, concepts in zip(
            _PARTS.items(), files[::2], files[1::2], strict=True
        ):
            places = (f"{part}_images/{part}", f"{part}_images", part, f"images/{part}")
            for name, fields in _read_part(folder, part, captions, concepts, names):
                if not fields["text"]:
                    blank += 1
                    continue
                article, attribution, link = sources.get(name, ("", "", ""))
                records.append(
                    Record(
                        key=name,
                        image=find_place(folder, f"{name}.jpg", places, self._zipped),
                        split=split,
                        subject_id=article,
                        label=_NO_LABEL,
                        fields={**fields, "license": attribution, "source": link},
                    )
                )
        return Corpus(
            records=records,
            table=files[0],
            label_names=(),
            expected=self.SPEC.expected_counts,
            dropped={"blank_text": blank},
            notes=leak_notes(records),
            patient_hint=f"their article is not in {_LICENCES}",
            # The published split is by figure; an article may have figures in several splits.
            shared_subjects=True,
        )


def _read_part(
    folder: pathlib.Path,
    part: str,
    captions: pathlib.Path,
    concepts: pathlib.Path,
    names: dict[str, str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figure, its caption and its concepts, for the figures of one split."""
    cuis = dict(_read_cuis(concepts))
    manual_file = find_one(folder, (f"{part}_concepts_manual.csv",))
    manual = dict(_read_cuis(manual_file)) if manual_file else {}
    for _, row in read_rows(captions, ("ID", "Caption")):
        own = cuis.get(row["ID"], [])
        yield (
            row["ID"],
            {
                "text": row["Caption"],
                "cuis": own,
                "cuis_manual": manual.get(row["ID"], []),
                "concepts": [names[cui] for cui in own if cui in names],
            },
        )


def _read_cuis(file: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Figure and its UMLS concepts, which the table joins with `;`."""
    for _, row in read_rows(file, ("ID", "CUIs")):
        yield row["ID"], [cui.strip() for cui in row["CUIs"].split(";") if cui.strip()]
