"""TFDS builder of VQA-RAD from the official JSON: the published split, and one that does not leak."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.vqa_rad import SPEC as VQA_RAD
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.json_files import listed, read_json
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.questions import (
    Groups,
    count_questions,
    group_questions,
    question_record,
    questions_feature,
)

_FRACTIONS = (0.7, 0.1, 0.2)
_SPLITS = {
    "freeform": "train",
    "para": "train",
    "test_freeform": "test",
    "test_para": "test",
}
_OFFICIAL = {"train": 313, "test": 203}
_QUESTIONS = 2_248
_KEYS = ("image_name", "phrase_type", "question", "answer", "answer_type", "question_type", "qid")
_SHARED = (
    "warning: the published split asks about {count} images in train and in test (published: 202), so a "
    "model may know the test images; results for a paper: say so, or use vqa_rad/leak_free"
)


@dataclasses.dataclass
class VqaRadConfig(ManualConfig):
    """Options of VQA-RAD.

    Attributes:
        split: "leak_free": 70 / 10 / 20 % of the images by a hash, with all their questions; "official": the
            published split of the questions.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "split": ("leak_free", "official")}
    VARIANTS: ClassVar = {"leak_free": {"split": "leak_free"}, "official": {"split": "official"}}

    split: str = "leak_free"


class VqaRad(ManualBuilder):
    """One example per image (official: per image and split) with its questions and answers."""

    SPEC: ClassVar[DatasetSpec] = VQA_RAD
    CONFIG = VqaRadConfig
    DOWNLOADS: ClassVar[tuple[Download, ...]] = (
        Download("https://osf.io/download/6qdas/", "VQA_RAD Dataset Public.json"),
        # The archive of images has no folder of its own.
        Download(
            "https://files.osf.io/v1/resources/89kps/providers/osfstorage/5b21453986d8510011c277bc/?zip=",
            "VQA_RAD Image Folder/VQA_RAD Image Folder.zip",
            unpack=True,
        ),
    )
    _settings: VqaRadConfig

    def extra_features(self) -> dict[str, Any]:
        return {"organ": tfds.features.Text(), "qa": questions_feature()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The JSON of questions, the folder of images."""
        source = f"from {self.SPEC.homepage}"
        needed = (
            Needed(
                ("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json"),
                f"questions, {source}",
            ),
            Needed(("VQA_RAD Image Folder", "VQA_RAD_Image_Folder"), f"images, {source}"),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        table, images = self._layout(folder)
        questions = _read_questions(table)
        official = self._settings.split == "official"
        by_image = hash_splits({q["image_name"] for q in questions}, _FRACTIONS)
        groups = group_questions(
            (
                _SPLITS[q["phrase_type"]] if official else by_image[q["image_name"]],
                q["image_name"],
                q,
            )
            for q in questions
        )
        place = images.relative_to(folder)
        records = [
            question_record(
                split,
                name,
                (place / name).as_posix(),
                [_question_features(question) for question in found],
                organ=found[0]["image_organ"],
            )
            for (split, name), found in groups.items()
        ]
        return Corpus(
            records=records,
            table=table,
            label_names=(),
            expected=_OFFICIAL if official else self.SPEC.expected_counts,
            notes=_notes(groups, official=official),
            shared_subjects=official,
        )


def _question_features(question: dict[str, str]) -> dict[str, str]:
    """Features of one question."""
    names = ("question", "answer", "answer_type", "question_type")
    return {**{name: question[name] for name in names}, "question_id": question["qid"]}


def _read_questions(file: pathlib.Path) -> list[dict[str, str]]:
    """All questions with their texts stripped: the published file has blanks after some types.

    Raises:
        UserError: not the published file.
    """
    questions = []
    for number, entry in enumerate(listed(read_json(file), "", _KEYS, str(file)), start=1):
        question = {key: str(value).strip() for key, value in entry.items()}
        question.setdefault("image_organ", "")
        if question["phrase_type"] not in _SPLITS:
            raise UserError(
                f"{file} entry {number}: phrase_type is {question['phrase_type']!r}, expected "
                f"{', '.join(_SPLITS)}"
            )
        questions.append(question)
    return questions


def _notes(groups: Groups, *, official: bool) -> tuple[str, ...]:
    """Questions per split, and what is wrong with the published one."""
    questions = count_questions(groups, VQA_RAD.splits, total=_QUESTIONS)
    if not official:
        return (questions, "split by image; the published one, which leaks, is vqa_rad/official")
    shared = {n for s, n in groups if s == "train"} & {n for s, n in groups if s == "test"}
    return (questions, _SHARED.format(count=len(shared)))
