"""TFDS builder of PathVQA from the Parquet files on the Hugging Face Hub or the official pickles."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.pathvqa import SPEC as PATHVQA
from medvlp_jax.data.images import decode_image
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.pathvqa.parquet_images import ParquetImages
from tfds_builders.pathvqa.safe_pickle import read_plain_pickle
from tfds_builders.questions import (
    answer_type,
    count_questions,
    group_questions,
    question_record,
    questions_feature,
)
from tfds_builders.split_leaks import leak_notes

_SHORT = {"train": "train", "validation": "val", "test": "test"}
_KEYS = ("img_id", "sent", "label", "question_id")
# Dataset card of flaviagiammarino/path-vqa; the paper counts repeated questions, too.
_PARQUET = {"train": 19_654, "validation": 6_259, "test": 6_719}
_TOTAL = 32_799

Asked = Iterator[tuple[str, str, dict[str, Any]]]


class Pathvqa(ManualBuilder):
    """One example per image and split with its questions and answers."""

    SPEC: ClassVar[DatasetSpec] = PATHVQA

    def extra_features(self) -> dict[str, Any]:
        return {"qa": questions_feature()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        shards = self._shards(folder)
        if shards:
            return tuple(file for split in self.SPEC.splits for file in shards[split])
        source = f"questions, from {self.SPEC.homepage}; or data/*.parquet of the Hub"
        needed = [Needed((f"qas/{short}_vqa.pkl",), source) for short in _SHORT.values()]
        needed.append(Needed(("images",), f"images, from {self.SPEC.homepage}"))
        return require_layout(folder, self.SPEC, needed)[:-1]

    def _shards(self, folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
        """Split -> Parquet files; empty where there are none.

        Raises:
            UserError: one split has none.
        """
        shards = {s: sorted((folder / "data").glob(f"{s}-*.parquet")) for s in self.SPEC.splits}
        missing = [split for split, files in shards.items() if not files]
        if len(missing) == len(shards):
            return {}
        if missing:
            raise UserError(
                f"{folder / 'data'} has no {missing[0]}-*.parquet; {self.SPEC.access}. It must hold "
                f"{self.SPEC.layout}"
            )
        return shards

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        place = self._places[record.fields["image_id"]]
        return decode_image(self._images.read(place))

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        tables = self.table_files(folder)
        shards = self._shards(folder)
        self._images = ParquetImages(("question", "answer"))
        self._places: dict[str, tuple[pathlib.Path, int, int]] = {}
        groups = group_questions(self._read_parquet(shards) if shards else _read_pickles(tables))
        records = [
            question_record(
                split, name, "" if shards else _find_image(folder, split, name), questions
            )
            for (split, name), questions in groups.items()
        ]
        published = _PARQUET if shards else None
        total = None if shards else _TOTAL
        counts = count_questions(groups, self.SPEC.splits, published, total)
        return Corpus(
            records=records,
            table=tables[0],
            label_names=(),
            notes=(counts, *leak_notes(records, "images are")),
            shared_subjects=True,  # the published split is kept as it is
        )

    def _read_parquet(self, shards: dict[str, list[pathlib.Path]]) -> Asked:
        """Split, image and question of every row; rows of one image hold the same bytes."""
        for split, files in shards.items():
            number = 0
            for file in files:
                for place, content, texts in self._images.rows(file):
                    name = hashlib.sha256(content).hexdigest()[:16]
                    self._places.setdefault(name, place)
                    yield split, name, _question(texts, number=f"{split}/{number}")
                    number += 1


def _question(texts: dict[str, str], number: str, kind: str = "") -> dict[str, Any]:
    """Features of a question."""
    return {
        "question": texts["question"],
        "answer": texts["answer"],
        "answer_type": answer_type(texts["answer"]),
        "question_type": kind,
        "question_id": number,
    }


def _read_pickles(tables: tuple[pathlib.Path, ...]) -> Asked:
    """Split, image and question of every entry of the official lists.

    Raises:
        UserError: an entry of another form.
    """
    for split, table in zip(_SHORT, tables, strict=True):
        entries = read_plain_pickle(table)
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{table} is not the published list of questions; download it again")
        for number, entry in enumerate(entries, start=1):
            missing = [key for key in _KEYS if not isinstance(entry, dict) or key not in entry]
            if missing or not isinstance(entry["label"], dict) or not entry["label"]:
                raise UserError(
                    f"{table} entry {number} has no {', '.join(missing) or 'answer in label'}; download it "
                    "again"
                )
            answers = entry["label"]
            texts = {
                "question": str(entry["sent"]).strip(),
                "answer": str(max(answers, key=answers.__getitem__)).strip(),
            }
            kind = str(entry.get("question_type", ""))
            yield split, str(entry["img_id"]), _question(texts, str(entry["question_id"]), kind)


def _find_image(folder: pathlib.Path, split: str, name: str) -> str:
    """Path of an image, whose name starts with its folder (`train_0422`), relative to the folder."""
    places = (name.partition("_")[0], _SHORT[split])
    paths = [f"images/{place}/{name}.jpg" for place in places]
    return next((path for path in paths if (folder / path).exists()), paths[-1])
