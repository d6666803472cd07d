"""A fake run: features and examples of each split are known, so every result is too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from medvlp_jax.data.options import ImageOptions
from medvlp_jax.tasks.base import EvalData, Features


class FakeAccess:
    """`tasks.base.Access` on arrays in memory."""

    def __init__(self, splits: dict[str, Features], split: str = "test"):
        self.split, self.train_split, self.validation_split = split, "train", "validation"
        self.image = ImageOptions(size=32)
        self.splits = splits
        self.asked: list[str] = []

    def features(self, split: str) -> Features:
        self.asked.append(split)
        return self.splits[split]

    def examples(self, fields: Sequence[str]) -> Any:
        raise AssertionError(f"nobody should read {fields}")

    def images(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        raise AssertionError("nobody should read images")

    def ground(self, images: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        raise AssertionError("nobody should ask for maps")


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def make_features(x: np.ndarray, label: np.ndarray, **changes: Any) -> Features:
    """Features x, labels with every label known, one patient per row."""
    label = np.asarray(label, np.float32)
    n, names = len(label), tuple(f"label {k}" for k in range(label.shape[1]))
    x = np.asarray(x, np.float32)
    fields = dict(
        image_embed=unit(x),
        image_pooled=x,
        label=label,
        label_mask=np.ones_like(label),
        subject_id=np.arange(n),
        example_index=np.arange(n),
        label_names=names,
    )
    return Features(**{**fields, **changes})


def make_eval(access: Any, features: Features | None = None) -> EvalData:
    """The evaluated split of an access as the tasks get it."""
    features = features or access.splits[access.split]
    return EvalData(
        image_embed=features.image_embed,
        text_embed=features.image_embed,
        label=features.label,
        label_mask=features.label_mask,
        text_id=np.arange(len(features)),
        subject_id=features.subject_id,
        study_id=features.subject_id,
        example_index=features.example_index,
        label_names=features.label_names,
        dataset="fake/config",
        access=access,
    )


@pytest.fixture
def fake() -> Any:
    """`fake.access(splits)`, `fake.features(x, label)`, `fake.eval(access)`."""

    class Fake:
        access = FakeAccess
        features = staticmethod(make_features)
        eval = staticmethod(make_eval)

    return Fake
