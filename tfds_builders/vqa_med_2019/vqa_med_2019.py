"""TFDS builder of VQA-Med 2019 from the official text files of questions by category."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.vqa_med_2019 import SPEC as VQA_MED_2019
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.manual_tables import read_lines
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.questions import (
    answer_type,
    count_questions,
    group_questions,
    question_record,
    questions_feature,
)
from tfds_builders.split_leaks import leak_notes
from tfds_builders.zipped_images import ZippedImages, find_place

_QUESTIONS = {"train": 12_792, "validation": 2_000, "test": 500}
_CATEGORIES = {
    "C1_Modality": "modality",
    "C2_Plane": "plane",
    "C3_Organ": "organ",
    "C4_Abnormality": "abnormality",
}
_TRAIN, _VALIDATION = "ImageClef-2019-VQA-Med-Training", "ImageClef-2019-VQA-Med-Validation"
_TEST = "VQAMed2019Test"
_IMAGES = {
    "train": f"{_TRAIN}/Train_images",
    "validation": f"{_VALIDATION}/Val_images",
    "test": f"{_TEST}/VQAMed2019_Test_Images",
}
_ANSWERS = f"{_TEST}/VQAMed2019_Test_Questions_w_Ref_Answers.txt"
_ZENODO = "https://zenodo.org/records/10499039/files"


class VqaMed2019(ManualBuilder):
    """One example per image with its questions, by category."""

    name = "vqa_med_2019"  # TFDS would make vqa_med2019 of the class name
    SPEC: ClassVar[DatasetSpec] = VQA_MED_2019
    DOWNLOADS: ClassVar[tuple[Download, ...]] = tuple(
        Download(url=f"{_ZENODO}/{name}.zip?download=1", path=f"{name}.zip", unpack=True)
        for name in (_TRAIN, _VALIDATION, _TEST)
    )

    def extra_features(self) -> dict[str, Any]:
        return {"qa": questions_feature(reference=tfds.features.Text())}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Four files of training, four of validation, one of test."""
        places = ((_TRAIN, "train"), (_VALIDATION, "val"))
        names = [
            f"{place}/QAPairsByCategory/{category}_{short}.txt"
            for place, short in places
            for category in _CATEGORIES
        ]
        source = f"from {self.SPEC.homepage}"
        needed = [Needed((name,), f"questions, {source}") for name in (*names, _ANSWERS)]
        return require_layout(folder, self.SPEC, needed)

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        return self._zipped.read(f"{record.fields['image_id']}.jpg")

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        tables = self.table_files(folder)
        archive = folder / f"{_IMAGES['test']}.zip"
        unpacked = (folder / _IMAGES["test"]).is_dir()
        self._zipped = ZippedImages([archive] if archive.exists() and not unpacked else [])
        groups = group_questions(_read_all(tables))
        records = [
            question_record(
                split,
                name,
                find_place(folder, f"{name}.jpg", (_IMAGES[split],), self._zipped),
                questions,
            )
            for (split, name), questions in groups.items()
        ]
        counts = count_questions(groups, self.SPEC.splits, _QUESTIONS)
        return Corpus(
            records=records,
            table=tables[0],
            label_names=(),
            expected=self.SPEC.expected_counts,
            notes=(counts, *leak_notes(records, "images are")),
            shared_subjects=True,  # the published split is kept as it is
        )


def _read_all(tables: tuple[pathlib.Path, ...]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Split, image and question of every line."""
    per_split = len(_CATEGORIES)
    for number, table in enumerate(tables[:-1]):
        split = VQA_MED_2019.splits[number // per_split]
        category = tuple(_CATEGORIES.values())[number % per_split]
        for line, (image, question, answer) in _read_cells(table, 3):
            number_in_split = f"{split}/{category}/{line}"
            yield split, image, _question(question, answer, category, number_in_split)
    for line, (image, category, question, answer) in _read_cells(tables[-1], 4):
        category = category.lower()
        if category not in _CATEGORIES.values():
            raise UserError(
                f"{tables[-1]} line {line}: category is {category!r}, expected "
                f"{', '.join(_CATEGORIES.values())}"
            )
        yield "test", image, _question(question, answer, category, f"test/{category}/{line}")


def _question(question: str, answer: str, category: str, number: str) -> dict[str, Any]:
    """Features of a question; of several reference answers, which `#` separates, `answer` is the first."""
    first = answer.partition("#")[0].strip()
    return {
        "question": question,
        "answer": first,
        "answer_type": answer_type(first),
        "question_type": category,
        "question_id": number,
        "reference": answer,
    }


def _read_cells(file: pathlib.Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """Number of each line that is not blank, and its cells between `|`; an answer may hold further ones.

    Raises:
        UserError: too few cells, or a blank one.
    """
    for number, line in enumerate(read_lines(file), start=1):
        cells = [cell.strip() for cell in line.split("|", count - 1)]
        if len(cells) < count or not all(cells):
            raise UserError(
                f"{file} line {number} has {sum(map(bool, cells))} cells between |, expected {count}; take "
                "the published file unchanged"
            )
        yield number, cells
