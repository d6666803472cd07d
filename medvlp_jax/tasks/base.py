"""What a downstream task is: it takes the embeddings of one split and gives metrics with intervals."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from medvlp_jax.data.options import ImageOptions
from medvlp_jax.data.source import Examples
from medvlp_jax.errors import UserError

EncodeText = Callable[[list[str]], np.ndarray]
"""Texts to L2-normalised float32 embeddings [n, D]."""


class Metric(NamedTuple):
    """One number with its 95 % interval.

    Attributes:
        value: the metric on all rows; NaN where it is undefined (say, AUROC of a label nobody has).
        low, high: bounds of the interval; NaN when there is none.
        n: number of rows the metric was computed on.
        undefined: resamples in which the metric was undefined; the interval leaves them out.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    undefined: int = 0


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task returns.

    Attributes:
        metrics: `task/dataset/metric` -> Metric.
        predictions: arrays worth keeping, one row per example (or query).
        artefacts: plain values for the report: prompts, thresholds, left-out labels ... If the task
            could not run, the only entry is `skipped` with the reason.
    """

    metrics: dict[str, Metric] = dataclasses.field(default_factory=dict)
    predictions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    artefacts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Frozen image features and labels of one split, every example exactly once.

    Attributes:
        image_embed: [n, D] L2-normalised.
        image_pooled: [n, Di], what the image projection reads.
        label, label_mask, subject_id, example_index: as in `EvalData`.
        label_names: names of the K labels.
    """

    image_embed: np.ndarray
    image_pooled: np.ndarray
    label: np.ndarray
    label_mask: np.ndarray
    subject_id: np.ndarray
    example_index: np.ndarray
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_embed)

    def matrix(self, name: Literal["image_pooled", "image_embed"]) -> np.ndarray:
        """The features of that name, [n, D]."""
        return self.image_pooled if name == "image_pooled" else self.image_embed


class Access(Protocol):
    """What a task may read beside the embeddings of the evaluated split.

    Attributes:
        split, train_split, validation_split: names of the evaluated split and of the config's others.
        image: how stored images become the model's input.
    """

    split: str
    train_split: str
    validation_split: str
    image: ImageOptions

    def features(self, split: str) -> Features:
        """Image features of a split of the evaluated dataset."""
        ...

    def examples(self, fields: Sequence[str]) -> Examples:
        """The stored examples of the evaluated split; `EvalData.example_index` counts in them."""
        ...

    def images(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The evaluated split in batches, on each process all of it: example_index [b], and the model's
        input uint8 [b, H, W, C]."""
        ...

    def ground(self, images: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Cosine maps [n, h, w] of images with one phrase each; see `Predictor.ground`."""
        ...


def training_split(access: Access, chosen: str, otherwise: str) -> str:
    """The split that a task learns from: `chosen`, or with "" the config's.

    Args:
        otherwise: what would happen on the evaluated split itself, for the message: "knn would find ...".

    Raises:
        UserError: it is the evaluated split.
    """
    split = chosen or access.train_split
    if split == access.split:
        raise UserError(
            f"{otherwise}: evaluate another split than {split!r} (--split), or set train_split"
        )
    return split


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalData:
    """Embeddings and labels of one split, every example exactly once.

    Attributes:
        image_embed, text_embed: [n, D] L2-normalised.
        label: [n, K] 1 present, 0 absent, -1 uncertain.
        label_mask: [n, K] 1 where the label is known; uncertain counts as known.
        text_id: [n] equal for equal texts.
        subject_id, study_id, example_index: [n].
        label_names: names of the K labels.
        dataset: name of the dataset, with or without its config (`"image_text_folder/covid"`).
        texts: the n texts, where they are known.
        access: the model and the stored examples, for tasks that need more than these embeddings.
    """

    image_embed: np.ndarray
    text_embed: np.ndarray
    label: np.ndarray
    label_mask: np.ndarray
    text_id: np.ndarray
    subject_id: np.ndarray
    study_id: np.ndarray
    example_index: np.ndarray
    label_names: tuple[str, ...]
    dataset: str
    texts: tuple[str, ...] | None = None
    access: Access | None = None

    def __post_init__(self) -> None:
        """Checks that all arrays have the same rows and the labels the same columns."""
        rows = len(self.image_embed)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            counted = isinstance(value, np.ndarray) or field.name == "texts"
            if counted and value is not None and len(value) != rows:
                raise ValueError(f"{field.name} has {len(value)} rows, image_embed has {rows}")
        shape = (rows, len(self.label_names))
        if self.label.shape != shape or self.label_mask.shape != shape:
            raise ValueError(
                f"label {self.label.shape} and label_mask {self.label_mask.shape} should both be {shape}"
            )

    def __len__(self) -> int:
        return len(self.image_embed)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        *,
        label_names: Sequence[str],
        dataset: str,
        texts: Sequence[str] | None = None,
        access: Access | None = None,
    ) -> EvalData:
        """Wraps what `predictor.extract` returns."""
        given = {"label_names", "dataset", "texts", "access"}
        names = {f.name for f in dataclasses.fields(cls)} - given
        return cls(
            **{name: np.asarray(arrays[name]) for name in names},
            label_names=tuple(label_names),
            dataset=dataset,
            texts=None if texts is None else tuple(texts),
            access=access,
        )

    def need_access(self, task: str) -> Access:
        """The access.

        Raises:
            UserError: these are embeddings alone.
        """
        if self.access is None:
            raise UserError(
                f"task {task} reads more than the embeddings of one split: run it with `eval --workdir W "
                f"--tasks {task}`, or give EvalData an `access`"
            )
        return self.access


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Base class of all tasks; a subclass adds its settings as fields and defines `__call__`.

    Attributes:
        prefix: first part of the metric keys; give another one when a task runs twice.
        bootstrap_samples: resamples behind each interval.
        seed: seed of the resampling.
    """

    prefix: str = "task"
    bootstrap_samples: int = 1000
    seed: int = 0

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """Runs the task.

        Args:
            data: embeddings and labels of the split.
            encode_text: for prompts.
            logit_scale: factor of the cosine in the model's contrastive loss (already exponentiated).
        """
        raise TypeError(
            f"{type(self).__name__} must define __call__(data, encode_text, logit_scale)"
        )

    def key(self, data: EvalData, metric: str) -> str:
        """Metric key `task/dataset/metric`."""
        return f"{self.prefix}/{data.dataset.partition('/')[0]}/{metric}"


def slugs(labels: Sequence[str]) -> list[str]:
    """Labels as parts of metric keys: `"Pleural Effusion"` -> `"pleural_effusion"`.

    Letters of any script stay. Two labels that would become equal get their position appended.
    """
    plain = [re.sub(r"\W+", "_", label.lower()).strip("_") for label in labels]
    return [
        name if name and plain.count(name) == 1 else f"{name}_{i}".strip("_")
        for i, name in enumerate(plain)
    ]
