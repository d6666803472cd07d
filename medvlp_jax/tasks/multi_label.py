"""What tasks with several yes/no labels share: which labels, what uncertain ones count as, AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.tasks import metrics
from medvlp_jax.tasks.base import Metric

UncertainPolicy = Literal["ignore", "zeros", "ones"]


def check_policy(task: str, policy: str) -> None:
    """Raises UserError for an unknown uncertain policy."""
    if policy not in ("ignore", "zeros", "ones"):
        raise UserError(f"{task} uncertain_policy={policy!r}: choose ignore, zeros or ones")


def label_columns(
    task: str, dataset: str, known: Sequence[str], wanted: Sequence[str]
) -> tuple[tuple[str, ...], list[int]]:
    """Names and columns of the wanted labels, () = all.

    Raises:
        UserError: a label that the dataset lacks.
    """
    names = tuple(wanted) or tuple(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"{task} label {name!r} is no label of {dataset}; it has {', '.join(known)}"
            )
    return names, [known.index(name) for name in names]


def resolve_uncertain(
    label: np.ndarray, mask: np.ndarray, policy: UncertainPolicy
) -> tuple[np.ndarray, np.ndarray]:
    """Applies the uncertain policy.

    Args:
        label: [n, K] 1, 0 or -1 = uncertain.
        mask: [n, K] 1 where known; uncertain counts as known.
        policy: uncertain labels are left out (ignore) or taken as 0 (zeros) or 1 (ones).

    Returns:
        Label in {0, 1} float32 and boolean mask, both [n, K].
    """
    known, uncertain = mask > 0, label < 0
    if policy == "ignore":
        known = known & ~uncertain
    value = 1.0 if policy == "ones" else 0.0
    return np.where(uncertain, value, label).astype(np.float32), known


def single_class(names: Sequence[str], label: np.ndarray, mask: np.ndarray) -> dict[str, str]:
    """Labels whose ranking is undefined -> why; label and boolean mask are [n, K]."""
    excluded = {}
    for k, name in enumerate(names):
        values = label[mask[:, k], k]
        if not (values == 1).any():
            excluded[name] = f"no positive among {len(values)} known rows"
        elif not (values == 0).any():
            excluded[name] = f"no negative among {len(values)} known rows"
    return excluded


def macro_auroc(label: np.ndarray, mask: np.ndarray, score: np.ndarray) -> float:
    """Mean AUROC over the labels that have both classes, NaN where none has; all arrays [n, K]."""
    found = [_auroc(label, mask, score, k) for k in range(label.shape[1])]
    return float(metrics.nanmean(np.array(found)))


def _auroc(label: np.ndarray, mask: np.ndarray, score: np.ndarray, k: int) -> float:
    rows = mask[:, k]
    return metrics.auroc(label[rows, k], score[rows, k]) if rows.any() else float("nan")


def auroc_metrics(
    label: np.ndarray,
    mask: np.ndarray,
    scores: Sequence[np.ndarray],
    *,
    groups: np.ndarray,
    samples: int,
    seed: int,
) -> list[Metric]:
    """Macro AUROC and the AUROC per label, with intervals from the same resampled patients.

    Args:
        label: [n, K] in {0, 1}; mask: boolean [n, K].
        scores: R x [n, K]: of repetitions (say, training subsets), whose AUROCs are averaged.
        groups: [n] patients; samples, seed: see `metrics.bootstrap`.

    Returns:
        1 + K metrics. A label without both classes is NaN and not in the macro mean; the interval covers the
        choice of test patients, not that of the repetition.
    """
    known = [np.flatnonzero(mask[:, k]) for k in range(label.shape[1])]

    def columns(weight: np.ndarray) -> np.ndarray:
        per_label = np.full((len(weight), len(known)), np.nan)
        for k, rows in enumerate(known):
            if len(rows):
                runs = [metrics.auroc(label[rows, k], s[rows, k], weight[:, rows]) for s in scores]
                per_label[:, k] = np.mean(runs, axis=0)
        return np.concatenate([metrics.nanmean(per_label)[:, None], per_label], axis=1)

    return metrics.bootstrap_columns(
        columns,
        len(label),
        groups=groups,
        samples=samples,
        seed=seed,
        n=[int(mask.any(axis=1).sum()), *(len(rows) for rows in known)],
    )
