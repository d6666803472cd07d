"""Without these, pooled folds could count a patient twice or give an interval that ignores patients."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvlp_jax import folds
from medvlp_jax.errors import UserError


def write_fold(root, name: str, ranks: list[float], patients: list[int], chance: float):
    folder = root / name / "eval" / "data_test"
    folder.mkdir(parents=True)
    arrays = {"image_to_text_rank": ranks, "text_to_image_rank": ranks, "subject_id": patients}
    np.savez(folder / "retrieval_predictions.npz", **{k: np.asarray(v) for k, v in arrays.items()})
    metrics = {
        f"retrieval/data/{direction}_recall_at_{k}_chance": {"value": chance}
        for direction in folds.DIRECTIONS
        for k in folds.RECALL_AT
    }
    (folder / "results.json").write_text(json.dumps({"metrics": metrics}))
    return root / name


def test_pools_by_hand(tmp_path) -> None:
    a = write_fold(tmp_path, "a", [1, 3, 6, 20], [1, 1, 2, 3], 0.2)
    b = write_fold(tmp_path, "b", [2, 11], [4, 5], 0.5)
    pooled = folds.pool([a, b])
    assert pooled["image_to_text_recall_at_1"].value == pytest.approx(1 / 6)
    assert pooled["image_to_text_recall_at_5"].value == pytest.approx(3 / 6)
    assert pooled["text_to_image_recall_at_10"].value == pytest.approx(4 / 6)
    assert pooled["image_to_text_recall_at_5_chance"].value == pytest.approx(
        (4 * 0.2 + 2 * 0.5) / 6
    )
    above = pooled["image_to_text_recall_at_5_above_chance"]
    assert above.value == pytest.approx(0.5 - 0.3)
    assert above.low < above.value < above.high
    assert above.n == 6
    assert "image_to_text_recall_at_5 " in folds.table(pooled)


def test_interval_resamples_patients_not_images(tmp_path) -> None:
    """Ten images each of two patients, one always found and one never: a resample has 0, 1 or 2 of them."""
    a = write_fold(tmp_path, "a", [1] * 10 + [50] * 10, [1] * 10 + [2] * 10, 0.1)
    recall = folds.pool([a])["image_to_text_recall_at_1"]
    assert (recall.low, recall.value, recall.high) == (0.0, 0.5, 1.0)


def test_same_patient_in_two_folds_and_missing_results(tmp_path) -> None:
    a = write_fold(tmp_path, "a", [1, 2], [1, 2], 0.2)
    b = write_fold(tmp_path, "b", [1, 2], [2, 3], 0.2)
    with pytest.raises(UserError, match="test the same patient"):
        folds.pool([a, b])
    with pytest.raises(UserError, match="has 0 retrieval results"):
        folds.pool([a, tmp_path / "c"])
