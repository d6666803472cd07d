"""TFDS builder of PMC-VQA from the published tables and the archive of figures."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.pmc_vqa import SPEC as PMC_VQA
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
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

_HUB = "https://huggingface.co/datasets/xmcmic/PMC-VQA/resolve/main"
_LETTERS = ("A", "B", "C", "D")
_CHOICES = tuple(f"choice_{letter.lower()}" for letter in _LETTERS)
_COLUMNS = ("Figure_path", "Question", *(f"Choice {letter}" for letter in _LETTERS))
_PREFIX = re.compile(r"^\s*[A-D]\s*:\s*")  # "B:Focal uptake pattern"


@dataclasses.dataclass
class PmcVqaConfig(ManualConfig):
    """Options of PMC-VQA.

    Attributes:
        release: "1" (train.csv, test.csv) or "2" (train_2.csv, test_2.csv).
        test: "full", or "clean": the questions of version 1 that were checked by hand (test_clean.csv).
    """

    CHOICES: ClassVar = {
        **ManualConfig.CHOICES,
        "release": ("1", "2"),
        "test": ("full", "clean"),
    }
    VARIANTS: ClassVar = {"v1": {"release": "1"}, "v2": {"release": "2"}}

    release: str = "1"
    test: str = "full"


class PmcVqa(ManualBuilder):
    """One example per figure and split with its questions and choices."""

    SPEC: ClassVar[DatasetSpec] = PMC_VQA
    CONFIG = PmcVqaConfig
    _settings: PmcVqaConfig

    def extra_features(self) -> dict[str, Any]:
        more = dict.fromkeys((*_CHOICES, "answer_label"), tfds.features.Text())
        return {"qa": questions_feature(**more)}

    @classmethod
    def downloads(cls, settings: ManualConfig) -> tuple[Download, ...]:
        assert isinstance(settings, PmcVqaConfig)
        return tuple(Download(url=f"{_HUB}/{name}", path=name) for name in _names(settings))

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:2]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Table of training, table of test, figures.

        Raises:
            UserError: files are missing, or the options do not go together.
        """
        settings = self._settings
        train, test, images = _names(settings)
        source = f"from {self.SPEC.homepage}"
        needed = (
            Needed((train,), f"questions, {source}"),
            Needed((test,), f"questions, {source}"),
            Needed(
                (images, images.removesuffix(".zip"), "images", "figures"), f"figures, {source}"
            ),
        )
        return require_layout(folder, self.SPEC, needed)

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        return self._zipped.read(record.fields["image_id"])

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        *tables, figures = self._layout(folder)
        self._zipped = ZippedImages([figures] if figures.suffix == ".zip" else [])
        places = (figures.name, ".") if figures.is_dir() else (figures.stem,)
        captions: dict[str, str] = {}
        self._other_answers = 0
        groups = group_questions(
            (split, image, question)
            for split, table in zip(self.SPEC.splits, tables, strict=True)
            for image, question in self._read_questions(table, captions)
        )
        records = [
            question_record(
                split,
                name,
                find_place(folder, name, places, self._zipped),
                questions,
                text=captions.get(name, ""),
            )
            for (split, name), questions in groups.items()
        ]
        return Corpus(
            records=records,
            table=tables[0],
            label_names=(),
            notes=(
                count_questions(groups, self.SPEC.splits),
                f"answers that are not the choice their label names: {self._other_answers}",
                *leak_notes(records, "figures are"),
            ),
            shared_subjects=True,  # the published split is kept as it is
        )

    def _read_questions(
        self, table: pathlib.Path, captions: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Figure and question of every row; `captions` is filled where the table has them.

        Raises:
            UserError: no figure, or no valid answer.
        """
        for line, row in read_rows(table, _COLUMNS):
            name = pathlib.PurePosixPath(row["Figure_path"]).name
            if not name:
                raise UserError(f"{table} line {line}: Figure_path is blank")
            choices = [_PREFIX.sub("", row[f"Choice {letter}"]) for letter in _LETTERS]
            given = _PREFIX.sub("", row.get("Answer") or row.get("Anwser") or "")
            label = _answer_label(row.get("Answer_label", ""), given, choices)
            if label is None:
                raise UserError(
                    f"{table} line {line}: neither Answer_label ({row.get('Answer_label', '')!r}) nor Answer "
                    f"({given[:40]!r}) names one of the choices"
                )
            answer = choices[_LETTERS.index(label)]
            self._other_answers += given not in ("", label, answer)
            if row.get("Caption"):
                captions.setdefault(name, row["Caption"])
            yield (
                name,
                {
                    "question": row["Question"],
                    "answer": answer,
                    "answer_type": answer_type(answer),
                    "question_type": "",
                    "question_id": f"{table.stem}/{line}",
                    "answer_label": label,
                    **dict(zip(_CHOICES, choices, strict=True)),
                },
            )


def _names(settings: PmcVqaConfig) -> tuple[str, str, str]:
    """Table of training, table of test, archive of figures.

    Raises:
        UserError: the options do not go together.
    """
    end = "" if settings.release == "1" else "_2"
    if end and settings.test == "clean":
        raise UserError("option test=clean: there is a checked test set of release=1 alone")
    test = "test_clean.csv" if settings.test == "clean" else f"test{end}.csv"
    return f"train{end}.csv", test, f"images{end}.zip"


def _answer_label(label: str, answer: str, choices: list[str]) -> str | None:
    """Letter of the right choice: the one in the table, else that of the answer's text."""
    if label in _LETTERS:
        return label
    if answer in _LETTERS:
        return answer
    return _LETTERS[choices.index(answer)] if answer in choices else None
