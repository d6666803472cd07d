"""The main job: embedded corpus -> pretrain -> evaluate on held-out patients -> export."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

from medvlp_jax import evaluate, runs
from medvlp_jax.config import Config
from medvlp_jax.data import build as data_build
from medvlp_jax.report import plots
from medvlp_jax.step import variables


def quickstart(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs the main job in `workdir` and prints where everything is.

    Args:
        config: usually `configs/quickstart.py`.
        workdir: created when missing; an interrupted job goes on where it was.

    Returns:
        Test metrics before and after training, seconds and paths (also in `summary.json`).
    """
    started = time.perf_counter()
    data = config.data
    data_build.ensure_built(data.dataset, data.data_dir)
    print(f"[1/4] corpus {data.dataset} ready after {time.perf_counter() - started:.0f} s")
    before = _untrained(config, workdir)
    print(f"[2/4] untrained model on held-out patients: {_line(before)}")
    runs.run_training(config, workdir)
    results = runs.run_evaluation(workdir)
    after = {key: metric.value for key, metric in results.metrics.items()}
    print(f"[3/4] held-out patients after {time.perf_counter() - started:.0f} s")
    print(evaluate.table(results, brief=True))
    exported = runs.run_export(workdir, workdir / "exported")
    figure = plots.learning_curve(workdir / "metrics.jsonl", workdir / "learning_curve.png")
    summary = {
        "seconds": round(time.perf_counter() - started, 1),
        "untrained": before,
        "trained": after,
        "results": str(evaluate.results_folder(workdir, data.dataset, config.eval.split)),
        "exported": str(exported),
        "learning_curve": str(figure),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(f"[4/4] done in {summary['seconds']:.0f} s")
    key = f"zero_shot/{_name(data.dataset)}/macro_auroc"
    if key in after and key in before:
        print(f"zero-shot macro AUROC, untrained {before[key]:.3f} -> trained {after[key]:.3f}")
    for label, path in (
        ("results and plots", summary["results"]),
        ("learning curve", summary["learning_curve"]),
        ("PyTorch weights", summary["exported"]),
        ("checkpoints", workdir / "checkpoints"),
    ):
        print(f"{label:<18} {path}")
    print("Research use only, not for clinical use.")
    return summary


def _untrained(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Test metrics of the freshly initialised model, the baseline every result is read against."""
    run = runs.open_run(config, workdir)
    state = runs.make_training(run).fresh_state()
    predictor = runs.make_predictor(run, variables(state))
    results = runs.evaluate_split(run, predictor, split=config.eval.split)
    return {key: metric.value for key, metric in results.metrics.items()}


def _name(dataset: str) -> str:
    return dataset.split("/")[0]


def _line(metrics: dict[str, float]) -> str:
    shown = {k: v for k, v in metrics.items() if k.endswith(("macro_auroc", "recall_at_5"))}
    return "  ".join(f"{key} {value:.3f}" for key, value in shown.items())
