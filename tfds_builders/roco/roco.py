"""TFDS builder of ROCO from the published lists and the figures that its script downloads."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.roco import SPEC as ROCO
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows, read_tagged_lines
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.split_leaks import leak_notes

_PLACES = ("data", "all_data", ".")
_KINDS = {
    "radiology": ("radiology",),
    "non_radiology": ("non-radiology",),
    "all": ("radiology", "non-radiology"),
}
_ROWS = {"radiology": ROCO.expected_counts["rows"], "non_radiology": 6_127, "all": 87_952}
_LISTS = ("captions.txt", "licences.txt", "keywords.txt", "cuis.txt", "semtypes.txt")


@dataclasses.dataclass
class RocoConfig(ManualConfig):
    """Options of ROCO.

    Attributes:
        kind: "radiology" figures, "non_radiology" ones, or "all".
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "kind": tuple(_KINDS)}
    VARIANTS: ClassVar = {kind: {"kind": kind} for kind in _KINDS}

    kind: str = "radiology"


class Roco(ManualBuilder):
    """Figures with captions, keywords, concepts, and licence and article of each."""

    SPEC: ClassVar[DatasetSpec] = ROCO
    CONFIG = RocoConfig
    _settings: RocoConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        lists = dict.fromkeys(("keywords", "cuis", "semtypes"), tfds.features.Sequence(text))
        return {**lists, "license": text, "kind": text}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return tuple(file for _, _, files in self._layout(folder) for file in files)

    def _layout(self, folder: pathlib.Path) -> list[tuple[str, str, tuple[pathlib.Path, ...]]]:
        """Split, kind and the five lists of each part."""
        parts = [(s, k) for s in self.SPEC.splits for k in _KINDS[self._settings.kind]]
        needed = [
            Needed(
                tuple(f"{place}/{split}/{kind}/{name}" for place in _PLACES), "of the repository"
            )
            for split, kind in parts
            for name in _LISTS
        ]
        found = iter(require_layout(folder, self.SPEC, needed))
        return [(split, kind, tuple(next(found) for _ in _LISTS)) for split, kind in parts]

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        records, blank = [], 0
        parts = self._layout(folder)
        for split, kind, files in parts:
            for record in _read_part(folder, split, kind, files):
                if record.fields["text"]:
                    records.append(record)
                else:
                    blank += 1
        if not records:
            raise UserError("captions.txt of all splits are blank; clone the repository again")
        return Corpus(
            records=records,
            table=parts[0][2][0],
            label_names=(),
            expected={"rows": _ROWS[self._settings.kind]},
            dropped={"blank_text": blank},
            notes=leak_notes(records),
            patient_hint="their article is not in licences.txt",
            # The published split is by figure; an article may have figures in several splits.
            shared_subjects=True,
        )


def _read_part(
    folder: pathlib.Path, split: str, kind: str, files: tuple[pathlib.Path, ...]
) -> Iterator[Record]:
    """Examples of one split and kind."""
    captions, licences, *others = files
    sources = {row["ROCO_ID"]: row for _, row in read_rows(licences, ("ROCO_ID", "PMC_ID", "CC"))}
    keywords, cuis, semtypes = (dict(read_tagged_lines(file)) for file in others)
    images = captions.parent / "images"
    there = set(os.listdir(images)) if images.is_dir() else set()
    for name, cells in read_tagged_lines(captions):
        source = sources.get(name, {})
        # Packed copies name a figure by its id; the published script by article and file.
        candidates = (f"{name}.jpg", source.get("PMC_ID", ""))
        file = next((c for c in candidates if c in there), candidates[0])
        yield Record(
            key=name,
            image=(images / file).relative_to(folder).as_posix(),
            split=split,
            subject_id=source.get("PMC_ID", "").partition("_")[0],
            label=np.zeros(0, np.int8),
            fields={
                "text": " ".join(cells),
                "keywords": keywords.get(name, []),
                "cuis": cuis.get(name, []),
                # Each type is followed by its name.
                "semtypes": semtypes.get(name, [])[::2],
                "license": source.get("CC", ""),
                "kind": kind,
            },
        )
