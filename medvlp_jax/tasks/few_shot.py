"""Few-shot adapters on frozen embeddings: prompts plus some labelled images of each finding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.base import (
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
from medvlp_jax.tasks.subsets import few_per_class
from medvlp_jax.tasks.zero_shot import ZeroShot


class Prompted(NamedTuple):
    """What zero-shot classification knows of K labels.

    Attributes:
        positive, negative: [K, D] embeddings of the prompts.
        scale: logit scale.
    """

    positive: np.ndarray
    negative: np.ndarray
    scale: float

    def margin(self, embed: np.ndarray) -> np.ndarray:
        """Logit of the positive minus that of the negative prompt, [n, K] for embeddings [n, D]."""
        return self.scale * (embed @ (self.positive - self.negative).T)


class Split(NamedTuple):
    """Embeddings [n, D], labels [n, K] in {0, 1}, whether they are known [n, K], and patients [n]."""

    embed: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    subject_id: np.ndarray


Shots = list[tuple[np.ndarray, np.ndarray]]
"""For each label the training rows of its positive and of its negative images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot(Task):
    """Tip-Adapter or CLIP-Adapter with `shots` positive and `shots` negative images per label.

    Each label is a decision between its positive and its negative prompt. The images are fixed by a hash of
    seed and patient (`subsets.few_per_class`). Numbers: `macro_auroc_16shot`, `auroc_16shot_<label>` as means
    over the seeds, and `macro_auroc_0shot` of the prompts alone.

    `method="tip_adapter"` (arXiv 2111.03930, equation 6, training-free): logits + alpha x the sum over the
    class's images of exp(-beta (1 - cosine)); alpha and beta have the best macro AUROC on validation.

    `method="clip_adapter"` (arXiv 2110.04544, equations 2 to 4): embeddings become
    ratio x ReLU(ReLU(f W1) W2) + (1 - ratio) x f, with W1, W2 shared by all labels and trained on the
    logistic loss of the drawn images with Adam.

    Attributes:
        method: see above.
        shots: images per class and label.
        seeds: of the choice of images (and of W1 and W2).
        alphas, betas: of Tip-Adapter; with one pair no validation split is read.
        ratio, steps, learning_rate: of CLIP-Adapter; the hidden width is a quarter of D.
        prompts, prompts_per_label: as in `ZeroShot`.
        labels: labels to classify, () = all.
        uncertain_policy: uncertain labels are left out (ignore) or taken as 0 (zeros) or 1 (ones).
        train_split, validation_split: "" = those of `config.data`.
    """

    prefix: str = "few_shot"
    method: Literal["tip_adapter", "clip_adapter"] = "tip_adapter"
    shots: tuple[int, ...] = (1, 4, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    betas: tuple[float, ...] = (1.0, 5.5, 20.0)
    ratio: float = 0.2
    steps: int = 200
    learning_rate: float = 1e-3
    prompts: str | Mapping[str, Any] = ""
    prompts_per_label: int = 5
    labels: tuple[str, ...] = ()
    uncertain_policy: UncertainPolicy = "ignore"
    train_split: str = ""
    validation_split: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for options out of range."""
        check_policy("few_shot", self.uncertain_policy)
        if self.method not in ("tip_adapter", "clip_adapter"):
            raise UserError(f"few_shot method={self.method!r}: choose tip_adapter or clip_adapter")
        if not self.shots or min(self.shots) < 1 or not self.seeds:
            raise UserError("few_shot needs shots from 1 on and at least one seed")
        if not self.alphas or not self.betas or not 0 <= self.ratio <= 1 or self.steps < 1:
            raise UserError("few_shot needs alphas, betas, a ratio in [0, 1] and at least one step")

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class.

        Raises:
            UserError: no such split, label or prompt, or the evaluated split is the training split.
        """
        if not data.label_names:
            reason = f"dataset {data.dataset} has no labels, so there is nothing to classify"
            return TaskResult(artefacts={"skipped": reason})
        access = data.need_access("few_shot")
        train_split = training_split(
            access, self.train_split, "few_shot would be tested on its own images"
        )
        names, columns = label_columns("few_shot", data.dataset, data.label_names, self.labels)
        zero_shot = ZeroShot(
            prompts=self.prompts, prompts_per_label=self.prompts_per_label, seed=self.seed
        )
        prompted = Prompted(*zero_shot.label_embeds(data, names, encode_text), logit_scale)
        train = self._split(access.features(train_split), columns)
        test = self._split(access.features(access.split), columns)
        validation = None
        if self.method == "tip_adapter" and len(self.alphas) * len(self.betas) > 1:
            validation = self._split(
                access.features(self.validation_split or access.validation_split), columns
            )
        metrics = self._metrics(data, "0shot", names, test, [prompted.margin(test.embed)])
        chosen: dict[str, Any] = {}
        predictions: dict[str, np.ndarray] = {
            "label": test.label,
            "label_mask": test.mask.astype(np.float32),
            "example_index": access.features(access.split).example_index,
        }
        for shots in self.shots:
            runs = [self._run(train, validation, test, prompted, shots, s) for s in self.seeds]
            scores = [score for score, _ in runs]
            metrics |= self._metrics(data, f"{shots}shot", names, test, scores)
            predictions[f"margin_{shots}shot"] = np.stack(scores, axis=2)
            chosen[f"{shots}shot"] = [options for _, options in runs]
        return TaskResult(
            metrics=metrics,
            predictions=predictions,
            artefacts={
                "label_names": list(names),
                "method": self.method,
                "excluded_labels": single_class(names, test.label, test.mask),
                "uncertain_policy": self.uncertain_policy,
                "chosen": chosen,
            },
        )

    def _split(self, features: Features, columns: list[int]) -> Split:
        label, mask = resolve_uncertain(
            features.label[:, columns], features.label_mask[:, columns], self.uncertain_policy
        )
        return Split(features.image_embed, label, mask, features.subject_id)

    def _run(
        self,
        train: Split,
        validation: Split | None,
        test: Split,
        prompted: Prompted,
        shots: int,
        seed: int,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Margins [n, K] of the evaluated rows from one choice of images, and the options chosen."""
        drawn = [
            few_per_class(train.subject_id, train.label[:, k], train.mask[:, k], shots, seed)
            for k in range(train.label.shape[1])
        ]
        if self.method == "clip_adapter":
            adapt = train_adapter(
                train.embed,
                drawn,
                prompted,
                ratio=self.ratio,
                steps=self.steps,
                learning_rate=self.learning_rate,
                seed=seed,
            )
            return prompted.margin(adapt(test.embed)), {}
        pairs = list(itertools.product(self.alphas, self.betas))
        best = pairs[0]
        if validation is not None:
            quality = [
                macro_auroc(
                    validation.label,
                    validation.mask,
                    tip_margin(validation.embed, train.embed, drawn, prompted, *pair),
                )
                for pair in pairs
            ]
            best = pairs[int(np.argmax(np.nan_to_num(quality, nan=-1.0)))]
        score = tip_margin(test.embed, train.embed, drawn, prompted, *best)
        return score, {"alpha": best[0], "beta": best[1]}

    def _metrics(
        self,
        data: EvalData,
        suffix: str,
        names: tuple[str, ...],
        test: Split,
        scores: list[np.ndarray],
    ) -> dict[str, Metric]:
        macro, *per_label = auroc_metrics(
            test.label,
            test.mask,
            scores,
            groups=test.subject_id,
            samples=self.bootstrap_samples,
            seed=self.seed,
        )
        found = {self.key(data, f"macro_auroc_{suffix}"): macro}
        for name, metric in zip(slugs(names), per_label, strict=True):
            found[self.key(data, f"auroc_{suffix}_{name}")] = metric
        return found


def tip_margin(
    query: np.ndarray,
    memory: np.ndarray,
    drawn: Shots,
    prompted: Prompted,
    alpha: float,
    beta: float,
) -> np.ndarray:
    """Tip-Adapter's positive minus negative logit, [m, K].

    Args:
        query: [m, D] of length 1.
        memory: [n, D] of length 1, the training split.
        drawn: the images of each label.
        prompted: the zero-shot part.
        alpha: weight of the images.
        beta: sharpness of their affinity.
    """
    margin = prompted.margin(query).astype(np.float64)
    for k, (positive, negative) in enumerate(drawn):
        for rows, sign in ((positive, 1.0), (negative, -1.0)):
            affinity = np.exp(-beta * (1.0 - query @ memory[rows].T))
            margin[:, k] += sign * alpha * affinity.sum(axis=1)
    return margin


def train_adapter(
    memory: np.ndarray,
    drawn: Shots,
    prompted: Prompted,
    *,
    ratio: float,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Any:
    """Trains CLIP-Adapter's bottleneck on the drawn images.

    Args:
        memory: [n, D] of length 1, the training split.
        drawn: the images of each label; a row counts only for the labels that drew it.
        prompted: the zero-shot part, which stays as it is.
        ratio: share of the adapted features.
        steps, learning_rate: of Adam, on all drawn images at once.
        seed: of W1 and W2.

    Returns:
        Function from embeddings [m, D] to adapted ones of length 1.
    """
    target = np.zeros((len(memory), len(drawn)), np.float32)
    weight = np.zeros_like(target)
    for k, (positive, negative) in enumerate(drawn):
        target[positive, k] = 1
        for rows in (positive, negative):
            # Both classes count alike, also where the split has too few images of one.
            weight[rows, k] = 1 / max(len(rows), 1)
    rows = np.flatnonzero(weight.any(axis=1))
    x, y, w = jnp.asarray(memory[rows]), jnp.asarray(target[rows]), jnp.asarray(weight[rows])
    direction = jnp.asarray(prompted.positive - prompted.negative)
    width = memory.shape[1]
    init = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(seed))
    shapes = ((width, max(1, width // 4)), (max(1, width // 4), width))
    params = tuple(init(key, shape) for key, shape in zip(keys, shapes, strict=True))

    def adapt(params: Any, embed: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(embed @ params[0]) @ params[1])
        mixed = ratio * hidden + (1 - ratio) * embed
        return mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=-1, keepdims=True), 1e-12)

    def loss(params: Any) -> jax.Array:
        margin = prompted.scale * adapt(params, x) @ direction.T
        errors = optax.sigmoid_binary_cross_entropy(margin, y)
        return (w * errors).sum() / jnp.maximum(w.sum(), 1e-12)

    optimiser = optax.adam(learning_rate)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return lambda embed: np.asarray(adapt(params, jnp.asarray(embed)))
