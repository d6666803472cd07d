"""k nearest neighbours on frozen image features: what the features hold without any training."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.base import (
    EncodeText,
    EvalData,
    Features,
    Task,
    TaskResult,
    slugs,
    training_split,
)
from medvlp_jax.tasks.multi_label import (
    UncertainPolicy,
    auroc_metrics,
    check_policy,
    label_columns,
    macro_auroc,
    resolve_uncertain,
    single_class,
)

_CHUNK_ELEMENTS = 20_000_000  # similarities held at once: 160 MB
_TIE = 1e-6  # rounding of float32 cosines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Task):
    """Weighted k-nearest-neighbour classification with the training split as memory (DINO, arXiv 2104.14294).

    The score of a label is the share of positives among the k training images with a known label that are
    nearest by cosine, each weighted by exp(cosine / temperature). Of several k the one with the best macro
    AUROC on the validation split counts (ties: the smallest). Metrics: `macro_auroc` and `auroc_<label>`.

    Attributes:
        features: "image_embed" or "image_pooled".
        ks: numbers of neighbours. With a single one no validation split is read.
        temperature: of the weights; 0 = all neighbours count alike.
        labels: labels to classify, () = all.
        uncertain_policy: uncertain labels are left out (ignore) or taken as 0 (zeros) or 1 (ones).
        train_split, validation_split: "" = those of `config.data`.
    """

    prefix: str = "knn"
    features: Literal["image_embed", "image_pooled"] = "image_embed"
    ks: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    temperature: float = 0.07
    labels: tuple[str, ...] = ()
    uncertain_policy: UncertainPolicy = "ignore"
    train_split: str = ""
    validation_split: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for options out of range."""
        check_policy("knn", self.uncertain_policy)
        if self.features not in ("image_embed", "image_pooled"):
            raise UserError(f"knn features={self.features!r}: choose image_embed or image_pooled")
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"knn ks={self.ks}: numbers of neighbours from 1 on")
        if self.temperature < 0:
            raise UserError(f"knn temperature={self.temperature}: 0 or more")

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class. Raises UserError: no such split or label, or the evaluated split is for training."""
        del encode_text, logit_scale
        if not data.label_names:
            reason = f"dataset {data.dataset} has no labels, so there is nothing to classify"
            return TaskResult(artefacts={"skipped": reason})
        access = data.need_access("knn")
        train_split = training_split(access, self.train_split, "knn would find each image itself")
        names, columns = label_columns("knn", data.dataset, data.label_names, self.labels)
        train = access.features(train_split)
        memory = self._unit(train)
        known_label, known = self._labels(train, columns)

        def scores(features: Features, ks: list[int]) -> np.ndarray:
            query = self._unit(features)
            return vote(query, memory, known_label, known, ks, self.temperature)

        ks = sorted(self.ks)
        quality: list[float] = []
        if len(ks) > 1:
            validation = access.features(self.validation_split or access.validation_split)
            truth = self._labels(validation, columns)
            quality = [macro_auroc(*truth, score) for score in scores(validation, ks)]
            ks = [ks[int(np.argmax(np.nan_to_num(quality, nan=-1.0)))]]
        test = access.features(access.split)
        (score,) = scores(test, ks)
        label, mask = self._labels(test, columns)
        found = auroc_metrics(
            label,
            mask,
            [score],
            groups=test.subject_id,
            samples=self.bootstrap_samples,
            seed=self.seed,
        )
        keys = ["macro_auroc", *(f"auroc_{name}" for name in slugs(names))]
        return TaskResult(
            metrics={self.key(data, key): metric for key, metric in zip(keys, found, strict=True)},
            predictions={
                "score": score,
                "label": label,
                "label_mask": mask.astype(np.float32),
                "example_index": test.example_index,
            },
            artefacts={
                "label_names": list(names),
                "excluded_labels": single_class(names, label, mask),
                "uncertain_policy": self.uncertain_policy,
                "features": self.features,
                "k": ks[0],
                "validation_macro_auroc": quality,
                "memory": len(memory),
            },
        )

    def _labels(self, features: Features, columns: list[int]) -> tuple[np.ndarray, np.ndarray]:
        label, mask = features.label[:, columns], features.label_mask[:, columns]
        return resolve_uncertain(label, mask, self.uncertain_policy)

    def _unit(self, features: Features) -> np.ndarray:
        x = features.matrix(self.features)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def vote(
    query: np.ndarray,
    memory: np.ndarray,
    label: np.ndarray,
    known: np.ndarray,
    ks: list[int],
    temperature: float,
) -> np.ndarray:
    """Weighted share of positives among the k nearest rows of a memory.

    Rows that tie for the last places share them, so that the order of the memory plays no part.

    Args:
        query: [m, D] of length 1.
        memory: [n, D] of length 1.
        label: [n, K] in {0, 1}.
        known: boolean [n, K]; a label's neighbours are among its known rows. A label that is known nowhere
            scores 0; with fewer than k known rows all of them count.
        ks: numbers of neighbours.
        temperature: of the weights; 0 = none.

    Returns:
        [len(ks), m, K].
    """
    scores = np.zeros((len(ks), len(query), label.shape[1]))
    step = max(1, _CHUNK_ELEMENTS // max(len(memory), 1))
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        cosine = query[rows].astype(np.float64) @ memory.T.astype(np.float64)
        for pattern in range(patterns.shape[1]):
            members = patterns[:, pattern]
            columns = np.flatnonzero(which == pattern)
            if not members.any():
                continue
            near = cosine[:, members]
            weight = np.ones_like(near)
            if temperature:  # relative to the nearest, so that no row's weights all underflow
                weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
            positive = label[np.ix_(members, columns)].astype(np.float64)
            for number, k in enumerate(ks):
                share = weight * _membership(near, min(k, near.shape[1]))
                total = share.sum(axis=1, keepdims=True)
                scores[number][rows, columns] = share @ positive / total
    return scores


def _membership(cosine: np.ndarray, k: int) -> np.ndarray:
    """[m, n] 1 for the k largest of each row, shares where several tie for the last places."""
    last = np.partition(cosine, cosine.shape[1] - k, axis=1)[:, cosine.shape[1] - k, None]
    above = cosine > last + _TIE
    tied = ~above & (cosine >= last - _TIE)
    left = k - above.sum(axis=1, keepdims=True)
    return above + tied * left / tied.sum(axis=1, keepdims=True)
