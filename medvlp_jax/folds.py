"""Retrieval over the folds of a cross-validation by patient: `medvlp folds W1 W2 ...`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.tasks import metrics
from medvlp_jax.tasks.base import Metric

DIRECTIONS = ("image_to_text", "text_to_image")
RECALL_AT = (1, 5, 10)


def pool(
    workdirs: Sequence[str | pathlib.Path],
    *,
    split: str = "test",
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Recall@K over all folds, each query ranked among its own fold, with intervals by patient.

    Args:
        workdirs: runs, each evaluated on a fold of its own (`data build ... --option fold=K`, `eval`).
        split: split that was evaluated.
        samples: bootstrap resamples of patients; seed: of these.

    Returns:
        "image_to_text_recall_at_5" ... -> share of queries whose expected rank is at most 5; "..._chance" ->
        what a random order gives; "..._above_chance" -> their difference.

    Raises:
        UserError: a run has no retrieval results, or a patient is tested in two folds.
    """
    folds = [_read(pathlib.Path(workdir), split) for workdir in workdirs]
    seen: dict[int, str] = {}
    for workdir, fold in zip(workdirs, folds, strict=True):
        for patient in np.unique(fold["subject_id"]):
            if int(patient) in seen:
                raise UserError(
                    f"{workdir} and {seen[int(patient)]} test the same patient: pool runs of different folds "
                    "(data build ... --option fold=K)"
                )
            seen[int(patient)] = str(workdir)
    names, columns = [], []
    for direction in DIRECTIONS:
        for k in RECALL_AT:
            name = f"{direction}_recall_at_{k}"
            hit = np.concatenate([fold[f"{direction}_rank"] <= k for fold in folds]).astype(float)
            chance = np.concatenate(
                [np.full(len(f["subject_id"]), f[f"{name}_chance"]) for f in folds]
            )
            names += [name, f"{name}_chance", f"{name}_above_chance"]
            columns += [hit, chance, hit - chance]
    table = np.stack(columns, axis=1)

    def means(weight: np.ndarray) -> np.ndarray:
        return weight @ table / weight.sum(axis=1, keepdims=True)

    groups = np.concatenate([fold["subject_id"] for fold in folds])
    found = metrics.bootstrap_columns(means, len(table), groups=groups, samples=samples, seed=seed)
    return dict(zip(names, found, strict=True))


def _read(workdir: pathlib.Path, split: str) -> dict[str, Any]:
    """Ranks, patients and chance of one run."""
    found = sorted(workdir.glob(f"eval/*_{split}/retrieval_predictions.npz"))
    if len(found) != 1:
        raise UserError(
            f"{workdir} has {len(found)} retrieval results of the split {split}: expected one; run "
            f"`eval --workdir {workdir} --split {split}`"
        )
    with np.load(found[0]) as file:
        arrays: dict[str, Any] = dict(file)
    if "subject_id" not in arrays:
        raise UserError(f"{found[0]} is of an older version and has no patients: run eval again")
    if len(arrays["text_to_image_rank"]) != len(arrays["subject_id"]):
        raise UserError(
            f"{found[0]}: folds with gallery='unique' cannot be pooled; use gallery='all'"
        )
    results = json.loads((found[0].parent / "results.json").read_text(encoding="utf-8"))
    for key, metric in results["metrics"].items():
        if key.startswith("retrieval/") and key.endswith("_chance"):
            arrays[key.rpartition("/")[2]] = metric["value"]
    return arrays


def table(pooled: dict[str, Metric]) -> str:
    """One line per metric."""
    return "\n".join(
        f"{name:<40} {m.value:.3f}  [{m.low:.3f}, {m.high:.3f}]  n={m.n}"
        for name, m in pooled.items()
    )
