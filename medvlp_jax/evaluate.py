"""Runs tasks on one split of one dataset, and writes what they found."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medvlp_jax import config as config_lib
from medvlp_jax.config import Config
from medvlp_jax.data import pipeline
from medvlp_jax.data.options import data_options
from medvlp_jax.predictor import Predictor, extract
from medvlp_jax.report import plots
from medvlp_jax.tasks.access import RunAccess
from medvlp_jax.tasks.base import EvalData, Metric, Task, TaskResult

_VERSIONS = ("jax", "flax", "optax", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What all tasks found on one split.

    Attributes:
        dataset, split: where.
        tasks: task key -> its result.
        data: embeddings and labels behind it; None when no task ran.
    """

    dataset: str
    split: str
    tasks: dict[str, TaskResult]
    data: EvalData | None

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics, `task/dataset/metric` -> Metric."""
        return {key: m for result in self.tasks.values() for key, m in result.metrics.items()}


def evaluate(
    predictor: Predictor,
    config: Config,
    tasks: Mapping[str, Task],
    *,
    split: str,
    tokenizer: Any,
    cache: pathlib.Path | None = None,
) -> Results:
    """Encodes a split once and runs every task on the embeddings.

    Args:
        predictor: the model.
        config: full config; `data` says which dataset, `eval.batch_size` how much at a time.
        tasks: from `build.build_tasks`.
        split: split name.
        tokenizer: the model's.
        cache: folder for image features of this and other splits, see `tasks.access`; None = none.

    Raises:
        UserError: dataset or split missing; a task without prompts for a label.
    """
    if not tasks:
        return Results(dataset=config.data.dataset, split=split, tasks={}, data=None)
    options = dataclasses.replace(
        data_options(config.data), global_batch_size=config.eval.batch_size
    )
    batches = pipeline.eval_batches(
        options, tokenizer, split, jax.process_index(), jax.process_count()
    )
    arrays = extract(predictor, batches)
    data = EvalData.from_arrays(
        arrays,
        label_names=batches.label_names,
        dataset=config.data.dataset,
        access=RunAccess(predictor, options, tokenizer, split=split, cache=cache),
    )
    found = {
        key: task(data, predictor.encode_text, predictor.logit_scale) for key, task in tasks.items()
    }
    return Results(dataset=config.data.dataset, split=split, tasks=found, data=data)


def results_folder(workdir: str | pathlib.Path, dataset: str, split: str) -> pathlib.Path:
    """Where the results of a dataset and split belong."""
    return pathlib.Path(workdir) / "eval" / f"{dataset.replace('/', '_')}_{split}"


def write_results(
    results: Results, folder: str | pathlib.Path, *, step: int, config: Config
) -> pathlib.Path:
    """Writes `results.json`, per-example predictions and plots.

    Args:
        results: what was found.
        folder: made when missing; files of an earlier evaluation are replaced.
        step: checkpoint that was evaluated.
        config: config of the run, stored beside the numbers.

    Returns:
        The path of `results.json`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for key, result in results.tasks.items():
        if result.predictions:
            arrays: dict[str, Any] = dict(result.predictions)
            np.savez_compressed(folder / f"{key}_predictions.npz", **arrays)
    summary = {
        "dataset": results.dataset,
        "split": results.split,
        "step": step,
        "seed": config.seed,
        "examples": 0 if results.data is None else len(results.data),
        "metrics": {key: _plain(metric._asdict()) for key, metric in results.metrics.items()},
        "tasks": {key: _plain(result.artefacts) for key, result in results.tasks.items()},
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "device": jax.devices()[0].device_kind,
        "config": json.loads(config_lib.to_json(config)),
    }
    path = folder / "results.json"
    path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    plots.save_evaluation(results.tasks, results.data, folder)
    return path


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays to Python; NaN and infinity, which JSON lacks, to null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(results: Results, *, brief: bool = False) -> str:
    """Readable table of the metrics with their 95 % intervals.

    Args:
        results: what was found.
        brief: only macro means, AUROC per label and recall.
    """
    shown = {
        key: metric
        for key, metric in results.metrics.items()
        if not brief
        or any(word in key for word in ("macro_auroc", "/auroc_", "recall_at", "accuracy"))
    }
    skipped = [
        f"{key} skipped: {result.artefacts['skipped']}"
        for key, result in results.tasks.items()
        if "skipped" in result.artefacts
    ]
    if not shown:
        return "\n".join(["no metrics", *skipped])
    width = max(len(key) for key in shown)
    lines = [f"{results.dataset} {results.split}"]
    for key, metric in shown.items():
        interval = f"[{metric.low:.3f}, {metric.high:.3f}]" if math.isfinite(metric.low) else ""
        lines.append(f"{key:<{width}}  {metric.value:>8.3f}  {interval:<16} n={metric.n}")
    return "\n".join([*lines, *skipped])
