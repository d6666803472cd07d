"""TFDS builder of SLAKE from the official JSON files, images, organ masks and boxes."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.slake import SPEC as SLAKE
from medvlp_jax.data.images import ImageError, encode_for_storage
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.json_files import box_of, listed, read_json
from tfds_builders.manual_builder import UNKNOWN, Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.questions import (
    Groups,
    count_questions,
    group_questions,
    question_record,
    questions_feature,
)
from tfds_builders.regions import boxes_feature, mask_feature, relative_boxes

_KEYS = (
    "qid",
    "img_name",
    "question",
    "answer",
    "q_lang",
    "answer_type",
    "content_type",
    "modality",
    "location",
)
_QUESTIONS = {"all": 14_028, "en": 7_033}
_HUB = "https://huggingface.co/datasets/BoKelvin/SLAKE/resolve/main"
_FILES = ("train.json", "validation.json", "test.json", "mask.txt")
Box = tuple[float, float, float, float]
_SAME_SHAPE = 0.02  # masks are stored in the size of the image or, rarely, in another


@dataclasses.dataclass
class SlakeConfig(ManualConfig):
    """Options of SLAKE.

    Attributes:
        language: "en", "zh", or "all" keeps the questions in both.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "language": ("en", "zh", "all")}
    VARIANTS: ClassVar = {
        "en": {"language": "en"},
        "zh": {"language": "zh"},
        "all": {"language": "all"},
    }

    language: str = "en"


class Slake(ManualBuilder):
    """One example per image with its questions, organ mask and boxes."""

    SPEC: ClassVar[DatasetSpec] = SLAKE
    CONFIG = SlakeConfig
    DOWNLOADS: ClassVar[tuple[Download, ...]] = (
        *(Download(url=f"{_HUB}/{name}", path=name) for name in _FILES),
        Download(url=f"{_HUB}/imgs.zip", path="imgs.zip", unpack=True),
    )
    _settings: SlakeConfig

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        more = {"language": text, "base_type": text}
        return {
            "organ": text,
            "modality": text,
            "organs": tfds.features.Sequence(text),
            "organ_mask": mask_feature(),
            "boxes": boxes_feature(),
            "qa": questions_feature(**more),
        }

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:4]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Three JSON files of questions, the values of the masks, the folder of images."""
        source = f"from {self.SPEC.homepage}"
        needed = (
            Needed(("train.json",), f"questions, {source}"),
            Needed(("validate.json", "validation.json"), f"questions, {source}"),
            Needed(("test.json",), f"questions, {source}"),
            Needed(("mask.txt",), f"values of the masks, {source}"),
            Needed(("imgs",), f"images, {source}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        *tables, values, images = self._layout(folder)
        groups = group_questions(
            (split, image, question)
            for split, table in zip(self.SPEC.splits, tables, strict=True)
            for image, question in _read_questions(table, self._settings.language)
        )
        if not groups:
            raise UserError(
                f"{tables[0]} and its sisters have no question in {self._settings.language}; take the "
                "published files unchanged"
            )
        self._organs = _read_mask_values(values)
        places = {name: images / pathlib.PurePosixPath(name).parent for _, name in groups}
        boxes = {name: _read_boxes(place / "detection.json") for name, place in places.items()}
        names = tuple(sorted({organ for found in boxes.values() for organ, _ in found}))
        records = [
            self._record(folder, images, split, name, questions, boxes[name], names)
            for (split, name), questions in groups.items()
        ]
        complete = self._settings.language == "all"
        return Corpus(
            records=records,
            table=tables[0],
            label_names=names,
            expected=self.SPEC.expected_counts if complete else {},
            notes=self._notes(groups, places),
        )

    def _record(
        self,
        folder: pathlib.Path,
        images: pathlib.Path,
        split: str,
        name: str,
        questions: list[dict[str, Any]],
        boxes: list[tuple[str, Box]],
        names: tuple[str, ...],
    ) -> Record:
        """One image; a box says that something is there, but no box does not say that it is not."""
        label = np.full(len(names), UNKNOWN, np.int8)
        label[[names.index(organ) for organ, _ in boxes]] = 1
        record = question_record(
            split,
            name,
            (images / name).relative_to(folder).as_posix(),
            [{k: v for k, v in q.items() if k not in ("organ", "modality")} for q in questions],
            organ=questions[0]["organ"],
            modality=questions[0]["modality"],
        )
        found = [(*corner, names.index(organ)) for organ, corner in boxes]
        mask = (images / name).parent / "mask.png"
        return dataclasses.replace(record, label=label, source=(mask, found))

    def _notes(self, groups: Groups, places: Mapping[str, pathlib.Path]) -> tuple[str, ...]:
        language = self._settings.language
        notes = [count_questions(groups, self.SPEC.splits, total=_QUESTIONS.get(language, 0))]
        for name in ("mask.png", "detection.json"):
            without = sum(not (place / name).exists() for place in places.values())
            if without:
                notes.append(f"warning: {without} images have no {name}")
        return tuple(notes)

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        file, boxes = record.source
        mask = _read_mask(file, self._organs, height, width)
        shown = [self._organs[int(value)] for value in np.unique(mask) if value]
        size = self._settings.size
        scale = size / min(height, width) if size and size < min(height, width) else 1.0
        # As `resize_for_storage`, but without mixing values, which are names of organs.
        target = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(mask, target, interpolation=cv2.INTER_NEAREST)
        return {
            "organ_mask": io.BytesIO(encode_for_storage(small[:, :, None], "png")),
            "organs": shown,
            "boxes": relative_boxes(boxes, height, width),
        }


def _read_questions(file: pathlib.Path, language: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Image and question of each entry in the wanted language.

    Raises:
        UserError: not the published file.
    """
    for number, entry in enumerate(listed(read_json(file), "", _KEYS, str(file)), start=1):
        texts = {k: str(v).strip() for k, v in entry.items() if isinstance(v, str | int)}
        if texts.get("q_lang") not in ("en", "zh"):
            raise UserError(
                f"{file} entry {number}: q_lang is {entry['q_lang']!r}, expected en or zh"
            )
        if language in ("all", texts["q_lang"]):
            yield (
                texts["img_name"],
                {
                    "question": texts["question"],
                    "answer": texts["answer"],
                    "answer_type": texts["answer_type"],
                    "question_type": texts["content_type"],
                    "question_id": texts["qid"],
                    "language": texts["q_lang"],
                    "base_type": texts.get("base_type", ""),
                    "organ": texts["location"],
                    "modality": texts["modality"],
                },
            )


def _read_mask_values(file: pathlib.Path) -> dict[int, str]:
    """Value in the masks -> organ, from lines `70:Liver`.

    Raises:
        UserError: a line of another form.
    """
    organs: dict[int, str] = {}
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), start=1):
        value, _, name = (part.strip() for part in line.partition(":"))
        if not line.strip():
            continue
        if not value.isdigit() or not 0 < int(value) < 256 or not name:
            raise UserError(
                f"{file} line {number} is {line!r}, expected VALUE:ORGAN; download it again"
            )
        organs[int(value)] = name
    return organs


def _read_boxes(file: pathlib.Path) -> list[tuple[str, Box]]:
    """Name and (x, y, width, height) in pixels of each box; none where there is no file.

    Raises:
        UserError: not a list of `{name: [x, y, width, height]}`.
    """
    if not file.exists():
        return []
    return [
        (str(name).strip(), box_of(corner, str(file)))
        for entry in listed(read_json(file), "", (), str(file))
        for name, corner in entry.items()
    ]


def _read_mask(
    file: pathlib.Path, organs: Mapping[int, str], height: int, width: int
) -> np.ndarray:
    """Mask in the size of the image, uint8 [H, W]: a value of `mask.txt` per pixel, 0 = nothing.

    Raises:
        ImageError: not an image, or of another shape.
    """
    if not file.exists():
        return np.zeros((height, width), np.uint8)
    mask = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.dtype != np.uint8:
        raise ImageError(f"{file.name} is not an 8-bit image; download it again")
    mask = mask if mask.ndim == 2 else mask[:, :, 0]
    if abs(mask.shape[1] / mask.shape[0] / (width / height) - 1) > _SAME_SHAPE:
        raise ImageError(
            f"{file.name} is {mask.shape[1]} x {mask.shape[0]}, the image {width} x {height}"
        )
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.where(np.isin(mask, list(organs)), mask, 0).astype(np.uint8)
