"""Zero-shot classification with prompts: one decision per label, or one class per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from medvlp_jax.data.prompt_sets import TEMPLATES, load_prompts, prompt_path
from medvlp_jax.errors import UserError
from medvlp_jax.predictor import mean_embed, sigmoid, softmax
from medvlp_jax.tasks import metrics
from medvlp_jax.tasks.base import EncodeText, EvalData, Metric, Task, TaskResult, slugs
from medvlp_jax.tasks.multi_label import (
    UncertainPolicy,
    check_policy,
    label_columns,
    resolve_uncertain,
    single_class,
)

Prompts = Mapping[str, Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Task):
    """Zero-shot classification.

    `mode="multi_label"` (CheXzero, doi 10.1038/s41551-022-00936-9): for each label the softmax over its
    positive and its negative prompt, p = softmax(s+ * scale, s- * scale)+. Metrics: AUROC, average precision,
    F1 and MCC per label and their macro means.

    `mode="multi_class"` (CheXpert 5x200 of GLoRIA, ICCV 2021): images with exactly one positive label; the
    class with the largest similarity to its positive prompts. Metrics: accuracy and macro-F1.

    Attributes:
        prompts: "" = `data/prompts/<dataset>.json`, or where there is none the pair "{label}" / "no {label}"
            of CheXzero; "templates" = always that pair; a name in `data/prompts` ("gloria", "biovil",
            "descriptions", see docs/prompts.md) or the path of a JSON file; or the dict itself: label ->
            {"positive": [...], "negative": [...]}.
        prompts_per_label: how many combinations of severity, subtype and location are drawn per label with
            `seed` ("gloria"; its paper draws 5); 0 = all.
        labels: labels to classify, () = all.
        mode: see above.
        ensemble: "embeddings" = mean of the prompts' embeddings, normalised again (BioViL); "probabilities"
            = mean of the probabilities over all pairs of a positive and a negative prompt (multi-label);
            "max" = similarity to the nearest prompt of a class (multi-class, GLoRIA).
        scaled: multiply cosines by the logit scale. False is what CheXzero's released code does:
            probabilities then stay near 0.5; the ranking, and so AUROC, is the same for one prompt pair.
        standardise: subtract each class's mean over the images and divide by its standard deviation before
            the argmax (multi-class). GLoRIA's code does it; it uses the test images as a set.
        uncertain_policy: uncertain labels are left out (ignore) or taken as 0 (zeros) or 1 (ones).
        threshold: for F1 and MCC: one number, or label -> number from `choose_thresholds` on validation
            rows. 0.5 means nearer to the positive than to the negative prompt.
    """

    prefix: str = "zero_shot"
    prompts: str | Mapping[str, Any] = ""
    prompts_per_label: int = 5
    labels: tuple[str, ...] = ()
    mode: Literal["multi_label", "multi_class"] = "multi_label"
    ensemble: Literal["embeddings", "probabilities", "max"] = "embeddings"
    scaled: bool = True
    standardise: bool = False
    uncertain_policy: UncertainPolicy = "ignore"
    threshold: float | Mapping[str, float] = 0.5

    def __post_init__(self) -> None:
        """Raises UserError for options that exist but not together."""
        allowed = {
            "multi_label": ("embeddings", "probabilities"),
            "multi_class": ("embeddings", "max"),
        }
        if self.mode not in allowed:
            raise UserError(f"zero_shot mode={self.mode!r}: choose {' or '.join(allowed)}")
        if self.ensemble not in allowed[self.mode]:
            raise UserError(
                f"zero_shot ensemble={self.ensemble!r} does not go with mode={self.mode!r}; choose "
                f"{' or '.join(allowed[self.mode])}"
            )
        check_policy("zero_shot", self.uncertain_policy)

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class. The interval of each metric comes from resampled patients.

        Raises:
            UserError: a label has no prompts, or the prompt file does not exist.
        """
        if not data.label_names:
            reason = f"dataset {data.dataset} has no labels, so there is nothing to classify"
            return TaskResult(artefacts={"skipped": reason})
        names, columns = self._columns(data)
        prompts = self._load_prompts(data, names)
        label, mask = resolve_uncertain(
            data.label[:, columns], data.label_mask[:, columns], self.uncertain_policy
        )
        run = self._multi_label if self.mode == "multi_label" else self._multi_class
        result = run(data, names, prompts, label, mask, encode_text, logit_scale)
        result.artefacts.update(
            label_names=list(names),
            prompts={name: {k: list(v) for k, v in prompts[name].items()} for name in names},
            uncertain_policy=self.uncertain_policy,
            ensemble=self.ensemble,
        )
        return result

    def choose_thresholds(
        self,
        validation: EvalData,
        encode_text: EncodeText,
        logit_scale: float,
        *,
        by: Literal["f1", "mcc"] = "mcc",
    ) -> dict[str, float]:
        """Thresholds per label that maximise MCC (CheXzero) or F1 (KAD) on validation rows; use them with
        `dataclasses.replace(task, threshold=...)`. 0.5 for a label with one class only."""
        names, columns = self._columns(validation)
        prompts = self._load_prompts(validation, names)
        label, mask = resolve_uncertain(
            validation.label[:, columns], validation.label_mask[:, columns], self.uncertain_policy
        )
        score = self._probabilities(validation, names, prompts, encode_text, logit_scale)
        return {
            name: metrics.best_threshold(label[mask[:, k], k], score[mask[:, k], k], by=by)
            for k, name in enumerate(names)
        }

    # --- multi-label --------------------------------------------------------------------------------

    def _multi_label(
        self,
        data: EvalData,
        names: tuple[str, ...],
        prompts: Prompts,
        label: np.ndarray,
        mask: np.ndarray,
        encode_text: EncodeText,
        logit_scale: float,
    ) -> TaskResult:
        score = self._probabilities(data, names, prompts, encode_text, logit_scale)
        thresholds = self._thresholds(names)
        excluded = single_class(names, label, mask)
        found = self._score(data, score, label, mask, thresholds, [n in excluded for n in names])
        results: dict[str, Metric] = {}
        for m, metric in enumerate(("auroc", "auprc", "f1", "mcc")):
            results[self.key(data, f"macro_{metric}")] = found[m]
            for k, name in enumerate(slugs(names)):
                results[self.key(data, f"{metric}_{name}")] = found[4 + 4 * k + m]
        return TaskResult(
            metrics=results,
            predictions={
                "score": score,
                "label": label,
                "label_mask": mask.astype(np.float32),
                "example_index": data.example_index,
            },
            artefacts={
                "excluded_labels": excluded,
                "thresholds": dict(zip(names, thresholds, strict=True)),
                "prevalence": {
                    name: float(label[mask[:, k], k].mean()) if mask[:, k].any() else None
                    for k, name in enumerate(names)
                },
            },
        )

    def _score(
        self,
        data: EvalData,
        score: np.ndarray,
        label: np.ndarray,
        mask: np.ndarray,
        thresholds: Sequence[float],
        excluded: Sequence[bool],
    ) -> list[Metric]:
        """4 macro metrics, then 4 per label, all from the same resamples. In a resample the macro mean is
        over the labels that have both classes in it."""
        known = [np.flatnonzero(mask[:, k]) for k in range(label.shape[1])]

        def columns(weight: np.ndarray) -> np.ndarray:
            per_label = np.full((len(weight), label.shape[1], 4), np.nan)
            for k, rows in enumerate(known):
                if excluded[k]:
                    continue
                w = weight[:, rows]
                y, p = label[rows, k], score[rows, k]
                called = p >= thresholds[k]
                per_label[:, k, :2] = metrics.auroc_and_auprc(y, p, w)
                per_label[:, k, 2] = metrics.f1(y, called, w)
                per_label[:, k, 3] = metrics.mcc(y, called, w)
            macro = metrics.nanmean(np.swapaxes(per_label, 1, 2))
            return np.concatenate([macro, per_label.reshape(len(weight), -1)], axis=1)

        used = len(np.unique(np.concatenate([*known, np.zeros(0, np.intp)])))
        return metrics.bootstrap_columns(
            columns,
            len(data),
            groups=data.subject_id,
            samples=self.bootstrap_samples,
            seed=self.seed,
            n=[used] * 4 + [len(rows) for rows in known for _ in range(4)],
        )

    def _probabilities(
        self,
        data: EvalData,
        names: tuple[str, ...],
        prompts: Prompts,
        encode_text: EncodeText,
        logit_scale: float,
    ) -> np.ndarray:
        """Probability of each label, float64 [n, K]."""
        scale = logit_scale if self.scaled else 1.0
        scores = np.empty((len(data), len(names)))
        for k, name in enumerate(names):
            positive, negative = (
                encode_text(list(prompts[name][side])) for side in ("positive", "negative")
            )
            if self.ensemble == "embeddings":
                positive, negative = mean_embed(positive)[None], mean_embed(negative)[None]
            near, far = data.image_embed @ positive.T, data.image_embed @ negative.T
            margin = (near[:, :, None] - far[:, None, :]).astype(np.float64)
            scores[:, k] = sigmoid(scale * margin).mean(axis=(1, 2))
        return scores

    def _thresholds(self, names: tuple[str, ...]) -> list[float]:
        if not isinstance(self.threshold, Mapping):
            return [float(self.threshold)] * len(names)
        missing = [name for name in names if name not in self.threshold]
        if missing:
            raise UserError(f"zero_shot threshold has no entry for label {missing[0]!r}")
        return [float(self.threshold[name]) for name in names]

    # --- multi-class --------------------------------------------------------------------------------

    def _multi_class(
        self,
        data: EvalData,
        names: tuple[str, ...],
        prompts: Prompts,
        label: np.ndarray,
        mask: np.ndarray,
        encode_text: EncodeText,
        logit_scale: float,
    ) -> TaskResult:
        rows = np.flatnonzero((label * mask).sum(axis=1) == 1)
        if not len(rows):
            raise UserError(
                f"zero_shot mode='multi_class': no image of {data.dataset} has exactly one positive label "
                f"among {', '.join(names)}; use mode='multi_label' or choose labels"
            )
        similarity = np.empty((len(rows), len(names)))
        for k, name in enumerate(names):
            embeds = encode_text(list(prompts[name]["positive"]))
            if self.ensemble == "embeddings":
                embeds = mean_embed(embeds)[None]
            similarity[:, k] = (data.image_embed[rows] @ embeds.T).max(axis=1)
        if self.standardise:
            spread = similarity.std(axis=0)
            similarity = (similarity - similarity.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        truth = np.argmax(label[rows] * mask[rows], axis=1)
        hits, prediction = _resolve_ties(similarity, truth)

        def columns(weight: np.ndarray) -> np.ndarray:
            return np.stack(
                [
                    metrics.mean(hits, weight),
                    metrics.macro_f1(truth, prediction, len(names), weight),
                ],
                axis=1,
            )

        accuracy, macro_f1 = metrics.bootstrap_columns(
            columns,
            len(rows),
            groups=data.subject_id[rows],
            samples=self.bootstrap_samples,
            seed=self.seed,
        )
        chance = Metric(1 / len(names), n=len(rows))
        scale = logit_scale if self.scaled and not self.standardise else 1.0
        return TaskResult(
            metrics={
                self.key(data, "accuracy"): accuracy,
                self.key(data, "macro_f1"): macro_f1,
                self.key(data, "accuracy_chance"): chance,
            },
            predictions={
                "score": softmax(scale * similarity),
                "class": truth,
                "prediction": prediction,
                "example_index": data.example_index[rows],
            },
            artefacts={"left_out_rows": len(data) - len(rows)},
        )

    # --- labels and prompts -------------------------------------------------------------------------

    def _columns(self, data: EvalData) -> tuple[tuple[str, ...], list[int]]:
        return label_columns("zero_shot", data.dataset, data.label_names, self.labels)

    def label_embeds(
        self, data: EvalData, names: tuple[str, ...], encode_text: EncodeText
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean embeddings of the positive and of the negative prompts of each label, both [K, D].

        Raises:
            UserError: a label lacks prompts.
        """
        prompts = self._load_prompts(data, names)
        positive, negative = (
            np.stack([mean_embed(encode_text(list(prompts[name][side]))) for name in names])
            for side in ("positive", "negative")
        )
        return positive, negative

    def _load_prompts(self, data: EvalData, names: tuple[str, ...]) -> Prompts:
        """The prompts of the given labels.

        Raises:
            UserError: names the file and the label that it lacks.
        """
        prompts, source = self._read_prompts(data.dataset.partition("/")[0], names)
        sides = ("positive", "negative") if self.mode == "multi_label" else ("positive",)
        for name in names:
            for side in sides:
                if not prompts.get(name, {}).get(side):
                    raise UserError(
                        f"{source}: label {name!r} has no {side!r} prompts; add them as "
                        f'{{"{name}": {{"positive": ["..."], "negative": ["..."]}}}}, or leave the label out '
                        "with the option labels=(...) of this task"
                    )
        return prompts

    def _read_prompts(self, dataset: str, names: tuple[str, ...]) -> tuple[Prompts, str]:
        if not isinstance(self.prompts, str):
            return self.prompts, "zero_shot prompts of the config"
        source = self.prompts or dataset
        if source == "templates" or not (self.prompts or prompt_path(dataset).is_file()):
            source = TEMPLATES
        prompts = load_prompts(source, names, number=self.prompts_per_label, seed=self.seed)
        return prompts, f"prompt file {prompt_path(source)}"


def with_prompts(tasks: Mapping[str, Task], prompts: str) -> dict[str, Task]:
    """Tasks with other prompts for the zero-shot ones.

    Args:
        tasks: key -> task.
        prompts: value of `ZeroShot.prompts`.

    Raises:
        UserError: none of them is zero-shot classification.
    """
    if not any(isinstance(task, ZeroShot) for task in tasks.values()):
        raise UserError(
            f"prompts {prompts!r} need a zero-shot task; the tasks are {', '.join(tasks) or 'none'}"
        )
    return {
        key: dataclasses.replace(task, prompts=prompts) if isinstance(task, ZeroShot) else task
        for key, task in tasks.items()
    }


def _resolve_ties(similarity: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected hit and a prediction per row [n, K] -> [n], [n].

    Classes tied for the first place share the hit; the prediction is then spread over them by row number.
    Taking the first index instead would make a constant model look like one that knows class 0.
    """
    best = similarity >= similarity.max(axis=1, keepdims=True) - 1e-6
    ties = best.sum(axis=1)
    hits = best[np.arange(len(truth)), truth] / ties
    wanted = np.arange(len(truth)) % ties
    prediction = np.argmax(np.cumsum(best, axis=1) > wanted[:, None], axis=1)
    return hits, prediction
