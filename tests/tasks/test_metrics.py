"""Without these, a metric or its interval could be wrong and every reported number with it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from medvlp_jax.tasks import metrics


def binary(seed: int, rows: int = 200, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.3).astype(np.float32)
    score = rng.normal(size=rows) + label
    return label, np.round(score, 1) if ties else score


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [True, False])
def test_scores_equal_sklearn(seed: int, ties: bool) -> None:
    label, score = binary(seed, ties=ties)
    assert metrics.auroc(label, score) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    expected = sk.average_precision_score(label, score)
    assert metrics.auprc(label, score) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_decisions_equal_sklearn(seed: int) -> None:
    label, score = binary(seed)
    called = score > 0.8
    assert metrics.f1(label, called) == pytest.approx(sk.f1_score(label, called))
    assert metrics.mcc(label, called) == pytest.approx(sk.matthews_corrcoef(label, called))
    assert metrics.accuracy(label, called) == pytest.approx(sk.accuracy_score(label, called))


def test_macro_f1_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 100))
    expected = sk.f1_score(label, prediction, average="macro")
    assert metrics.macro_f1(label, prediction, 6) == pytest.approx(expected)


def test_integer_weights_are_repeated_rows() -> None:
    label, score = binary(1)
    called = score > 0.5
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, (3, len(label)))
    for row in weight:
        rows = np.repeat(np.arange(len(label)), row)
        one = row[None]
        for fn, prediction in (
            (metrics.auroc, score),
            (metrics.auprc, score),
            (metrics.f1, called),
            (metrics.mcc, called),
            (metrics.accuracy, called),
        ):
            assert fn(label, prediction, one)[0] == pytest.approx(fn(label[rows], prediction[rows]))
        assert metrics.median(score, one)[0] == pytest.approx(np.median(score[rows]))
        assert metrics.mean(score, one)[0] == pytest.approx(np.mean(score[rows]))
    assert metrics.auroc(label, score, weight).shape == (3,)


def test_auroc_is_invariant_under_monotone_maps_and_known_by_hand() -> None:
    label, score = binary(2, ties=False)
    assert metrics.auroc(label, np.exp(score)) == metrics.auroc(label, score)
    assert metrics.auroc(np.array([0, 1]), np.array([0.0, 1.0])) == 1.0
    assert metrics.auroc(np.array([0, 1]), np.array([1.0, 0.0])) == 0.0
    assert metrics.auroc(label, np.zeros_like(score)) == 0.5
    # 0.3 beats 0.1, ties with 0.3, loses to nothing; 0.2 beats 0.1 only: (1 + 0.5 + 1 + 0) / 4.
    assert metrics.auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.3, 0.2])) == 0.625


def test_a_single_class_is_undefined_and_warns_nobody() -> None:
    score = np.arange(4.0)
    for label in (np.zeros(4), np.ones(4)):
        for fn in (metrics.auroc, metrics.auprc):
            assert np.isnan(fn(label, score))
        assert np.isnan(metrics.mcc(label, score > 1))
    assert np.isnan(metrics.f1(np.zeros(4), score > 1))
    assert metrics.mcc(np.array([0, 1]), np.array([1, 1])) == 0.0
    metric = metrics.bootstrap(metrics.auroc, (np.zeros(4), score), samples=10)
    assert np.isnan(metric.value)
    assert np.isnan(metric.low)
    assert metric.undefined == 10


def test_best_threshold_separates() -> None:
    label = np.array([0, 0, 1, 1])
    score = np.array([0.1, 0.2, 0.6, 0.9])
    for by in ("f1", "mcc"):
        assert metrics.best_threshold(label, score, by=by) == pytest.approx(0.4)
    assert metrics.best_threshold(np.zeros(4), score) == 0.5


def test_bootstrap_is_deterministic_and_ordered() -> None:
    label, score = binary(3)
    first = metrics.bootstrap(metrics.auroc, (label, score), samples=300, seed=5)
    assert first == metrics.bootstrap(metrics.auroc, (label, score), samples=300, seed=5)
    other = metrics.bootstrap(metrics.auroc, (label, score), samples=300, seed=6)
    assert (other.low, other.high) != (first.low, first.high)
    assert other.value == first.value
    assert first.low < first.value < first.high
    assert first.n == len(label)


def test_result_does_not_depend_on_the_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    label, score = binary(3)
    whole = metrics.bootstrap(metrics.auroc, (label, score), samples=100)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 7 * len(label))
    assert metrics.bootstrap(metrics.auroc, (label, score), samples=100) == whole


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    trials = 200
    for trial in range(trials):
        value = rng.normal(size=60)
        metric = metrics.bootstrap(metrics.mean, (value,), samples=400, seed=trial)
        hits += metric.low <= 0 <= metric.high
    assert 0.89 <= hits / trials <= 0.99


def test_patients_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(20), 10)
    value = np.repeat(rng.normal(size=20), 10)  # ten copies say no more than one
    clustered = metrics.bootstrap(metrics.mean, (value,), groups=patient, samples=500)
    naive = metrics.bootstrap(metrics.mean, (value,), samples=500)
    one_each = metrics.bootstrap(metrics.mean, (value[::10],), samples=500)
    width = clustered.high - clustered.low
    assert width > 2 * (naive.high - naive.low)
    assert width == pytest.approx(one_each.high - one_each.low, rel=0.2)


def test_one_patient_gives_no_interval() -> None:
    label, score = binary(0)
    metric = metrics.bootstrap(
        metrics.auroc, (label, score), groups=np.ones(len(label)), samples=50
    )
    assert metric.value == pytest.approx(sk.roc_auc_score(label, score))
    assert np.isnan(metric.low)
    assert np.isnan(metric.high)


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    label = np.zeros(30)
    label[0] = 1
    score = np.linspace(1, 0, 30)
    metric = metrics.bootstrap(metrics.auroc, (label, score), samples=500)
    # P(the only positive is not drawn) = (29/30)^30 = 0.36
    assert 130 < metric.undefined < 230
    assert metric.value == 1.0
    assert metric.low == metric.high == 1.0


def test_fourteen_labels_are_resampled_in_seconds() -> None:
    rng = np.random.default_rng(0)
    label = rng.random((2000, 14)) < 0.2
    score = rng.normal(size=(2000, 14))
    groups = rng.integers(0, 900, 2000)

    def columns(weight: np.ndarray) -> np.ndarray:
        return np.stack([metrics.auroc(label[:, k], score[:, k], weight) for k in range(14)], 1)

    start = time.perf_counter()
    found = metrics.bootstrap_columns(columns, 2000, groups=groups, samples=1000)
    assert time.perf_counter() - start < 15
    assert all(m.low < m.value < m.high for m in found)
