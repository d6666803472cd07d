"""Linear probe: logistic regression on frozen image features with 1, 10 and 100 % of the labels."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.base import (
    Access,
    EncodeText,
    EvalData,
    Features,
    Metric,
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
from medvlp_jax.tasks.subsets import patient_subset

# Below this many numbers BLAS threads cost more than they save: on a shared machine up to 40 times.
_THREADS_FROM = 20_000_000


class Labelled(NamedTuple):
    """Features and resolved labels of one split.

    Attributes:
        x: [n, D].
        label: [n, K] in {0, 1}.
        mask: boolean [n, K].
        subject_id: [n].
        example_index: [n].
    """

    x: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    subject_id: np.ndarray
    example_index: np.ndarray

    def take(self, rows: np.ndarray) -> Labelled:
        """Some of the rows."""
        return Labelled(*(array[rows] for array in self))


class Fit(NamedTuple):
    """One probe.

    Attributes:
        score: log odds [n, K] of the evaluated rows.
        rows: example_index of the training rows.
        c: chosen regularisation.
        validation: macro AUROC of each C on the validation split.
        constant: labels with one class only in the training rows; their score is 0.
        unfinished: fits that `max_iter` ended.
    """

    score: np.ndarray
    rows: np.ndarray
    c: float
    validation: list[float]
    constant: list[str]
    unfinished: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Task):
    """Logistic regression per label (L2, scikit-learn's L-BFGS) on frozen features.

    Of the patients of the training split with any known label a fixed, stratified share is taken
    (`subsets.patient_subset`); features are standardised by its mean and deviation; C is the one with the
    best macro AUROC on the whole validation split (ties: the smallest). A share below 1 is drawn once per
    seed, and the AUROC is the mean over the seeds. Metrics: `macro_auroc_1pct`, `auroc_1pct_<label>` and
    so on.

    Attributes:
        features: "image_pooled" = what the image projection reads, the usual choice; "image_embed" = the
            embedding of the contrast.
        fractions: shares of the labelled patients, each in (0, 1].
        seeds: of the subsets.
        cs: values of C (inverse strength of the penalty). With a single one no validation split is read.
        labels: labels to probe, () = all.
        uncertain_policy: uncertain labels are left out (ignore) or taken as 0 (zeros) or 1 (ones).
        train_split, validation_split: "" = those of `config.data`.
        max_iter: iterations of L-BFGS per fit.
    """

    prefix: str = "linear_probe"
    features: Literal["image_pooled", "image_embed"] = "image_pooled"
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    cs: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    labels: tuple[str, ...] = ()
    uncertain_policy: UncertainPolicy = "ignore"
    train_split: str = ""
    validation_split: str = ""
    max_iter: int = 1000

    def __post_init__(self) -> None:
        """Raises UserError for options out of range."""
        check_policy("linear_probe", self.uncertain_policy)
        if self.features not in ("image_pooled", "image_embed"):
            raise UserError(
                f"linear_probe features={self.features!r}: choose image_pooled or image_embed"
            )
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise UserError(f"linear_probe fractions={self.fractions}: shares in (0, 1], e.g. 0.01")
        if not self.cs or not all(c > 0 for c in self.cs) or not self.seeds:
            raise UserError("linear_probe needs positive cs and at least one seed")

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class; the text tower plays no part.

        Raises:
            UserError: no such split or label, or the evaluated split is the training split.
        """
        del encode_text, logit_scale
        if not data.label_names:
            reason = f"dataset {data.dataset} has no labels, so there is nothing to probe"
            return TaskResult(artefacts={"skipped": reason})
        access = data.need_access("linear_probe")
        train_split = training_split(
            access, self.train_split, "linear_probe would be tested on its own training rows"
        )
        names, columns = label_columns("linear_probe", data.dataset, data.label_names, self.labels)
        train = self._labelled(access.features(train_split), columns)
        train = train.take(np.flatnonzero(train.mask.any(axis=1)))
        if not len(train.x):
            reason = f"no row of split {train_split} of {data.dataset} has a known label"
            return TaskResult(artefacts={"skipped": reason})
        validation = self._validation(access, columns)
        test = self._labelled(access.features(access.split), columns)
        fits = {
            fraction: [
                self._fit(train, validation, test, names, fraction, seed)
                # All labels are one subset, whatever the seed.
                for seed in (self.seeds if fraction < 1 else self.seeds[:1])
            ]
            for fraction in self.fractions
        }
        return TaskResult(
            metrics=self._metrics(data, test, names, fits),
            predictions=_predictions(test, fits),
            artefacts={
                "label_names": list(names),
                "excluded_labels": single_class(names, test.label, test.mask),
                "uncertain_policy": self.uncertain_policy,
                "features": self.features,
                "splits": [train_split, self._validation_split(access), access.split],
                "labelled_patients": len(np.unique(train.subject_id)),
                "patients_also_in_train": len(np.intersect1d(train.subject_id, test.subject_id)),
                "fits": {percent(f): _summary(runs, test) for f, runs in fits.items()},
            },
        )

    def _validation_split(self, access: Access) -> str:
        return self.validation_split or access.validation_split

    def _labelled(self, features: Features, columns: list[int]) -> Labelled:
        label, mask = resolve_uncertain(
            features.label[:, columns], features.label_mask[:, columns], self.uncertain_policy
        )
        x = features.matrix(self.features)
        return Labelled(x, label, mask, features.subject_id, features.example_index)

    def _validation(self, access: Access, columns: list[int]) -> Labelled | None:
        if len(self.cs) == 1:
            return None
        return self._labelled(access.features(self._validation_split(access)), columns)

    def _fit(
        self,
        train: Labelled,
        validation: Labelled | None,
        test: Labelled,
        names: tuple[str, ...],
        fraction: float,
        seed: int,
    ) -> Fit:
        """Fits all labels and all Cs on one subset, and keeps the best C."""
        part = train.take(
            patient_subset(train.subject_id, (train.label > 0) & train.mask, fraction, seed)
        )
        inputs = [test.x] if validation is None else [test.x, validation.x]
        x, *inputs = standardise(part.x, inputs)
        cs = sorted(self.cs)
        scores = [np.zeros((len(cs), len(i), len(names))) for i in inputs]
        unfinished = 0
        constant = single_class(names, part.label, part.mask)
        for k, name in enumerate(names):
            if name in constant:
                continue
            rows = part.mask[:, k]
            found, ended = logistic_path(x[rows], part.label[rows, k], inputs, cs, self.max_iter)
            unfinished += ended
            for score, column in zip(scores, found, strict=True):
                score[:, :, k] = column
        quality: list[float] = []
        if validation is not None:
            quality = [macro_auroc(validation.label, validation.mask, s) for s in scores[1]]
        best = int(np.argmax(np.nan_to_num(quality, nan=-1.0))) if quality else 0
        return Fit(
            scores[0][best], part.example_index, cs[best], quality, list(constant), unfinished
        )

    def _metrics(
        self,
        data: EvalData,
        test: Labelled,
        names: tuple[str, ...],
        fits: dict[float, list[Fit]],
    ) -> dict[str, Metric]:
        results: dict[str, Metric] = {}
        for fraction, runs in fits.items():
            found = auroc_metrics(
                test.label,
                test.mask,
                [run.score for run in runs],
                groups=test.subject_id,
                samples=self.bootstrap_samples,
                seed=self.seed,
            )
            share = percent(fraction)
            results[self.key(data, f"macro_auroc_{share}")] = found[0]
            for name, metric in zip(slugs(names), found[1:], strict=True):
                results[self.key(data, f"auroc_{share}_{name}")] = metric
        return results


def standardise(x: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    """Rows minus the mean of `x` [n, D], over its deviation; a constant feature is only centred.

    Returns:
        `x` and the others, float32.
    """
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    spread = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(mean)), spread, 1.0)
    return [((rows - mean) / spread).astype(np.float32) for rows in (x, *others)]


def logistic_path(
    x: np.ndarray,
    label: np.ndarray,
    inputs: list[np.ndarray],
    cs: list[float],
    max_iter: int,
) -> tuple[list[np.ndarray], int]:
    """Logistic regressions of one label for rising C, each started where the last one ended.

    Args:
        x: [n, D] standardised.
        label: [n] in {0, 1}, both there.
        inputs: arrays [m, D] to score.
        cs: rising.
        max_iter: of L-BFGS.

    Returns:
        Log odds [C, m] for each of the inputs, and how many fits did not converge.
    """
    # At scikit-learn's 1e-4 the order of the rows still moves log odds by 0.2.
    model = LogisticRegression(max_iter=max_iter, warm_start=True, tol=1e-5)
    scores = [np.empty((len(cs), len(i))) for i in inputs]
    threads = None if x.size >= _THREADS_FROM else 1
    unfinished = 0
    for number, c in enumerate(cs):
        model.set_params(C=c)
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads):
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x, label > 0)
        unfinished += any(issubclass(w.category, ConvergenceWarning) for w in caught)
        for score, rows in zip(scores, inputs, strict=True):
            score[number] = model.decision_function(rows)
    return scores, unfinished


def percent(fraction: float) -> str:
    """0.01 -> "1pct", 0.005 -> "0.5pct"."""
    return f"{100 * fraction:g}pct"


def _predictions(test: Labelled, fits: dict[float, list[Fit]]) -> dict[str, np.ndarray]:
    """Log odds [n, K, seeds] per share, the truth, and the rows of the split that each fit learnt from."""
    found: dict[str, np.ndarray] = {
        "label": test.label,
        "label_mask": test.mask.astype(np.float32),
        "example_index": test.example_index,
    }
    for fraction, runs in fits.items():
        share = percent(fraction)
        found[f"log_odds_{share}"] = np.stack([run.score for run in runs], axis=2)
        for number, run in enumerate(runs):
            found[f"train_example_index_{share}_{number}"] = run.rows
    return found


def _summary(runs: list[Fit], test: Labelled) -> dict[str, Any]:
    """What the report says about the fits of one share, one entry per seed."""
    return {
        "train_rows": [len(run.rows) for run in runs],
        "c": [run.c for run in runs],
        "validation_macro_auroc": [run.validation for run in runs],
        "macro_auroc": [macro_auroc(test.label, test.mask, run.score) for run in runs],
        "single_class_in_train": [run.constant for run in runs],
        "not_converged": [run.unfinished for run in runs],
    }
