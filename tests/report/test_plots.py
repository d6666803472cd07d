"""Without these, the plots of a run could be empty, wrong, or need a display."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medvlp_jax.report import plots
from medvlp_jax.tasks.base import EvalData
from medvlp_jax.tasks.retrieval import Retrieval
from medvlp_jax.tasks.zero_shot import ZeroShot


def width(path: pathlib.Path) -> int:
    with Image.open(path) as image:
        return image.size[0]


def test_learning_curve(tmp_path) -> None:
    rows = [{"step": s, "loss": 3.0 / s, "info_nce/loss": 3.0 / s} for s in range(1, 9)]
    rows[3]["loss"] = None
    rows += [
        {"step": 8, "zero_shot/x/macro_auroc": 0.8, "retrieval/x/image_to_text_recall_at_5": 0.4}
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = plots.learning_curve(path, tmp_path / "sub" / "curve.png")
    assert out == tmp_path / "sub" / "curve.png"
    assert width(out) > 800
    left, right = plots.learning_curve_figure(rows).axes
    assert len(left.lines) == 1
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [1, 2, 3, 5, 6, 7, 8])
    assert len(right.lines) == 2
    assert plots.learning_curve_figure([]).axes


def test_roc_area_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.4
    score = np.round(rng.normal(size=80) + truth, 1)
    false, true = plots._roc(truth, score)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


def test_results_of_the_tasks_are_drawn(tmp_path) -> None:
    rng = np.random.default_rng(0)
    n = 40
    embed = rng.normal(size=(n, 4)).astype(np.float32)
    label = (rng.random((n, 3)) < 0.5).astype(np.float32)
    label[:, 2] = 0
    data = EvalData(
        image_embed=embed,
        text_embed=embed,
        label=label,
        label_mask=np.ones_like(label),
        text_id=np.arange(n),
        subject_id=np.arange(n),
        study_id=np.arange(n),
        example_index=np.arange(n),
        label_names=("A", "B b", "Never"),
        dataset="fake",
    )
    tasks = {
        "zero_shot": ZeroShot(bootstrap_samples=20),
        "retrieval": Retrieval(bootstrap_samples=20),
    }
    results = {
        key: task(data, lambda texts: rng.normal(size=(len(texts), 4)), 1.0)
        for key, task in tasks.items()
    }
    written = plots.save_evaluation(results, data, tmp_path)
    assert [p.name for p in written] == ["zero_shot.png", "retrieval.png"]
    assert all(width(p) > 500 for p in written)
    result = results["zero_shot"]
    names = result.artefacts["label_names"]
    figure = plots.roc_curves(
        label,
        result.predictions["score"],
        data.label_mask,
        names,
        plots._per_label(result.metrics, names),
    )
    assert len(figure.axes[0].lines) == 3  # the diagonal and two labels
    assert len(plots.retrieval_bars(results["retrieval"].metrics).axes[0].patches) == 3


def test_pyplot_is_not_touched() -> None:
    import subprocess
    import sys

    code = "import sys, medvlp_jax.report.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
