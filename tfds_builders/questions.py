"""What datasets of questions about images share: their feature, their records and the counts they print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders.manual_builder import Record

FIELDS = ("question", "answer", "answer_type", "question_type", "question_id")
"""Texts of every question; `answer_type` is OPEN or CLOSED."""

Groups = dict[tuple[str, str], list[dict[str, Any]]]
"""(split, image) -> its questions."""


def questions_feature(**more: Any) -> Any:
    """Feature `qa`: a sequence of questions.

    Args:
        more: further features of a question.
    """
    return tfds.features.Sequence({**dict.fromkeys(FIELDS, tfds.features.Text()), **more})


def answer_type(answer: str) -> str:
    """CLOSED for yes and no, else OPEN, where a dataset does not say it."""
    return "CLOSED" if answer.strip().lower() in ("yes", "no") else "OPEN"


def group_questions(asked: Iterable[tuple[str, str, dict[str, Any]]]) -> Groups:
    """Collects the questions of each image.

    Args:
        asked: split, image and question.
    """
    groups: Groups = {}
    for split, image, question in asked:
        groups.setdefault((split, image), []).append(question)
    return groups


def question_record(
    split: str, name: str, image: str, questions: Sequence[Mapping[str, Any]], **fields: Any
) -> Record:
    """One image with its questions; an image may occur once per split.

    Args:
        split: of the questions.
        name: of the image.
        image: path relative to the folder; "" where the builder reads it in another way.
        questions: values of `questions_feature`.
        fields: values of further features.
    """
    return Record(
        key=f"{split}/{name}",
        image=image,
        split=split,
        subject_id=name,
        label=np.zeros(0, np.int8),
        fields={"image_id": name, **fields, "qa": list(questions)},
    )


def count_questions(
    groups: Groups,
    splits: Sequence[str],
    published: Mapping[str, int] | None = None,
    total: int | None = None,
) -> str:
    """Line that a build prints: questions per split beside the published numbers.

    Args:
        groups: the questions.
        splits: in the order of the line.
        published: split -> number of questions, where published.
        total: published number of all questions; None = the sum of `published`.
    """
    published = published or {}
    counts: Counter[str] = Counter()
    for (split, _), found in groups.items():
        counts[split] += len(found)
    parts = [
        f"{split} {counts[split]}"
        + (f" (published: {published[split]})" if split in published else "")
        for split in splits
        if split in counts
    ]
    total = sum(published.values()) if total is None else total
    whole = f"; together {counts.total()}" + (f" (published: {total})" if total else "")
    return f"questions: {', '.join(parts)}{whole}"
