"""Figures of a run: learning curve, ROC curves, retrieval. Needs no display and no state of pyplot."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#2f6db5", "#d9722c", "#3a9a5b", "#b5446e", "#7a5fb0", "#8a7a2f", "#3aa0a6", "#777777")
_NOTE = "Research use only, not for clinical use."


def learning_curve(metrics_file: str | pathlib.Path, out: str | pathlib.Path) -> pathlib.Path:
    """Draws loss, learning rate and validation metrics over the steps.

    Args:
        metrics_file: `metrics.jsonl` of a run.
        out: PNG to write.

    Returns:
        `out`.
    """
    lines = pathlib.Path(metrics_file).read_text(encoding="utf-8").splitlines()
    return save(learning_curve_figure([json.loads(line) for line in lines if line.strip()]), out)


def learning_curve_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of `learning_curve` from the rows of a `metrics.jsonl`."""
    quality = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key.endswith(("macro_auroc", "accuracy", "recall_at_5"))
    ]
    losses = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key == "loss" or key.endswith("/loss")
    ]
    if len(losses) == 2:
        losses = ["loss"]  # one objective: the total says it all
    figure, (left, right) = _axes(2)
    for colour, key in zip(_cycle(len(losses)), losses, strict=True):
        left.plot(
            *_series(rows, key), color=colour, label=key, linewidth=2 if key == "loss" else 1.2
        )
    left.set(title="Training loss", xlabel="step", ylabel="loss")
    for colour, key in zip(_cycle(len(quality)), quality, strict=True):
        right.plot(*_series(rows, key), color=colour, label=key, marker="o", markersize=3)
    right.set(title="Validation", xlabel="step", ylim=(0, 1.02))
    for axes in (left, right):
        if axes.lines:
            axes.legend(frameon=False, fontsize=7)
    return figure


def roc_curves(
    label: np.ndarray,
    score: np.ndarray,
    label_mask: np.ndarray,
    names: Sequence[str],
    metrics: Mapping[str, Any],
) -> Figure:
    """One ROC curve per label with its AUROC and interval.

    Args:
        label, score, label_mask: [n, K].
        names: K labels.
        metrics: label name -> metric with value, low, high; a label that is missing is not drawn.
    """
    figure, (axes,) = _axes(1)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1)
    for k, (colour, name) in enumerate(zip(_cycle(len(names)), names, strict=True)):
        metric = metrics.get(name)
        known = label_mask[:, k] > 0
        truth = label[known, k] > 0
        if metric is None or truth.all() or not truth.any():
            continue
        false, true = _roc(truth, score[known, k])
        text = f"{name} {metric.value:.2f}"
        if np.isfinite(metric.low):
            text += f" ({metric.low:.2f} to {metric.high:.2f})"
        style = ("-", "--", ":")[k // len(_COLOURS) % 3]  # colours repeat after eight labels
        axes.plot(false, true, style, color=colour, linewidth=1.6, label=text)
    axes.set(
        title="ROC: AUROC with 95 % interval",
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(0, 1),
        ylim=(0, 1.01),
        aspect="equal",
    )
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def retrieval_bars(metrics: Mapping[str, Any]) -> Figure:
    """Recall@k of both directions with intervals; a short line marks the chance level.

    Args:
        metrics: `.../image_to_text_recall_at_1` and so on, as the task gives them.
    """
    figure, axes_row = _axes(2)
    sides = ("image_to_text", "text_to_image")
    for axes, side, colour in zip(axes_row, sides, _COLOURS, strict=False):
        found = {}
        chance = {}
        for key, metric in metrics.items():
            _, separator, rest = key.partition(f"{side}_recall_at_")
            if separator:
                k, _, kind = rest.partition("_")
                (chance if kind else found)[int(k)] = metric
        ks = sorted(found)
        values = np.array([found[k].value for k in ks])
        axes.bar([str(k) for k in ks], values, color=colour, width=0.6)
        for x, k in enumerate(ks):
            if np.isfinite(found[k].low):
                axes.plot([x, x], [found[k].low, found[k].high], color="#333333", linewidth=1.5)
            axes.plot([x - 0.38, x + 0.38], [chance[k].value] * 2, color="#333333", linestyle=":")
            axes.text(x, 1.03, f"{found[k].value:.2f}", ha="center", fontsize=8)
        axes.set(title=side.replace("_", " "), xlabel="k", ylabel="Recall@k", ylim=(0, 1.12))
    figure.supxlabel("dotted: chance", fontsize=8, x=0.98, ha="right")
    return figure


def save_evaluation(
    tasks: Mapping[str, Any], data: Any, folder: str | pathlib.Path
) -> list[pathlib.Path]:
    """Draws what the results of tasks allow, `<task>.png` each.

    Args:
        tasks: task key -> `TaskResult`.
        data: the `EvalData` behind them (not read today).
        folder: existing folder.

    Returns:
        The files written.
    """
    del data
    written = []
    for key, result in tasks.items():
        figure = None
        if {"label", "score", "label_mask"} <= result.predictions.keys():
            names = result.artefacts["label_names"]
            figure = roc_curves(
                result.predictions["label"],
                result.predictions["score"],
                result.predictions["label_mask"],
                names,
                _per_label(result.metrics, names),
            )
        elif any("_recall_at_" in name for name in result.metrics):
            figure = retrieval_bars(result.metrics)
        if figure is not None:
            written.append(save(figure, pathlib.Path(folder) / f"{key}.png"))
    return written


def save(figure: Figure, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a PNG with the note that it is research."""
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.text(0.01, 0.01, _NOTE, fontsize=6, color="#888888")
    figure.savefig(out, dpi=150, format="png")
    return out


def _per_label(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """AUROC metric of each label: the task writes them in the order of the labels."""
    found = [m for key, m in metrics.items() if key.rpartition("/")[2].startswith("auroc_")]
    return dict(zip(names, found, strict=True))


def _axes(number: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(4.6 * number + (3.2 if number == 1 else 0), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, number)))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
        one.title.set_fontsize(10)
    return figure, axes


def _cycle(number: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(number)]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [p[0] for p in points], [p[1] for p in points]


def _roc(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1); tied scores make one slanted step."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.concatenate([[0], np.cumsum(truth[order])[ends]])
    false = np.concatenate([[0], np.cumsum(~truth[order])[ends]])
    return false / false[-1], true / true[-1]
