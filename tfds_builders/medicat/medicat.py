"""TFDS builder of MedICaT from the published JSONL files and figures."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.medicat import SPEC as MEDICAT
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.json_lines import read_json_lines, text_of
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.regions import relative_boxes

_FRACTIONS = (0.9, 0.05, 0.05)
_PLACES = (".", "release")
_FIGURES = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
_SUBCAPTIONS = "subcaptions_public.jsonl"
_NO_LABEL = np.zeros(0, np.int8)


@dataclasses.dataclass
class MedicatConfig(ManualConfig):
    """Options of MedICaT.

    Attributes:
        kind: "all" figures, or those that the authors' classifier calls "radiology".
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "kind": ("all", "radiology")}
    VARIANTS: ClassVar = {"all": {"kind": "all"}, "radiology": {"kind": "radiology"}}

    kind: str = "all"


@dataclasses.dataclass(frozen=True)
class Subfigure:
    """A part of a compound figure.

    Attributes:
        label: letter of the part.
        box: x, y, width, height in pixels of the annotated image.
        text: its part of the caption; "" where none was found.
    """

    label: str
    box: tuple[float, float, float, float]
    text: str


class Medicat(ManualBuilder):
    """Figures with caption, references, licence, and subfigures where they were annotated."""

    SPEC: ClassVar[DatasetSpec] = MEDICAT
    CONFIG = MedicatConfig
    _settings: MedicatConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
        return {
            "references": tfds.features.Sequence(text),
            "subfigures": tfds.features.Sequence({"bbox": box, "label": text, "text": text}),
            "radiology": np.bool_,
            "doi": text,
            "license": text,
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        figures, _ = self._layout(folder)
        subcaptions = find_one(figures.parent, (_SUBCAPTIONS,))
        return (figures, subcaptions) if subcaptions else (figures,)

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """List of figures, folder of figures."""
        source = "of medicat_release.tar.gz"
        needed = (
            Needed(tuple(f"{place}/{_FIGURES}" for place in _PLACES), f"captions, {source}"),
            Needed(tuple(f"{place}/figures" for place in _PLACES), f"images, {source}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table, *subcaptions = self.table_files(folder)
        images = self._layout(folder)[1].relative_to(folder)
        subfigures = _read_subfigures(subcaptions[0]) if subcaptions else {}
        records, dropped = [], {"blank_text": 0, "not_radiology": 0}
        for _, entry in read_json_lines(table, ("pdf_hash", "fig_uri", "s2_caption", "radiology")):
            fields = _fields(entry)
            name = f"{entry['pdf_hash']}_{entry['fig_uri']}"
            if self._settings.kind == "radiology" and not fields["radiology"]:
                dropped["not_radiology"] += 1
            elif not fields["text"]:
                dropped["blank_text"] += 1
            else:
                records.append(
                    Record(
                        key=name,
                        image=(images / name).as_posix(),
                        split="",
                        subject_id=entry["pdf_hash"],
                        label=_NO_LABEL,
                        fields=fields,
                        source=subfigures.get(name, ()),
                    )
                )
        if not records:
            raise UserError(f"{table} lists no figure with a caption; unpack the archive again")
        splits = hash_splits({record.subject_id for record in records}, _FRACTIONS)
        if self._settings.kind == "all":
            del dropped["not_radiology"]
        annotated = sum(bool(record.source) for record in records)
        return Corpus(
            records=[dataclasses.replace(r, split=splits[r.subject_id]) for r in records],
            table=table,
            label_names=(),
            expected=self.SPEC.expected_counts,
            dropped=dropped,
            notes=(f"figures with annotated subfigures: {annotated} (published: 2069)",),
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        parts: tuple[Subfigure, ...] = record.source
        boxes = [(*part.box, number) for number, part in enumerate(parts)]
        return {
            "subfigures": [
                {"bbox": stored["bbox"], "label": part.label, "text": part.text}
                for part, stored in zip(parts, relative_boxes(boxes, height, width), strict=True)
            ]
        }


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """Features of one figure."""
    information = entry.get("oa_info") or {}
    return {
        "text": text_of(entry, "s2_caption") or text_of(entry, "s2orc_caption"),
        "references": [" ".join(str(t).split()) for t in entry.get("s2orc_references") or ()],
        "radiology": bool(entry["radiology"]),
        "doi": text_of(information, "doi"),
        "license": text_of(information.get("oa") or {}, "license"),
    }


def _read_subfigures(file: pathlib.Path) -> dict[str, tuple[Subfigure, ...]]:
    """Figure -> its parts.

    Raises:
        UserError: not the published form.
    """
    found: dict[str, tuple[Subfigure, ...]] = {}
    for line, entry in read_json_lines(file, ("pdf_hash", "fig_uri", "subfigures")):
        try:
            parts = tuple(_subfigure(entry, part) for part in entry["subfigures"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{file} line {line}: a subfigure or subcaption cannot be read "
                f"({type(error).__name__}: {error}); take the published file unchanged"
            ) from None
        found[f"{entry['pdf_hash']}_{entry['fig_uri']}"] = parts
    return found


def _subfigure(entry: dict[str, Any], part: dict[str, Any]) -> Subfigure:
    """One part: the box around its polygon, and the words of the caption that belong to it."""
    x, y = (np.asarray(part["points"], np.float64)[:, axis] for axis in (0, 1))
    label = str(part["label"])
    words = (entry.get("subcaptions") or {}).get(label, ())
    text = " ".join(entry["tokens"][index]["text"] for index in sorted(words))
    return Subfigure(label, (x.min(), y.min(), np.ptp(x), np.ptp(y)), text)
