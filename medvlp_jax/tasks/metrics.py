"""Metrics as functions of row weights, and bootstrap intervals on top of them.

A resample with replacement is the same as integer weights on the original rows. So every metric here takes
`weight [S, n]` and returns `[S]`: one call computes it for S resamples at once, without copying a row. With
`weight=None` a metric returns one float. A metric that is undefined (say, AUROC where one class is missing)
is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medvlp_jax.tasks.base import Metric

_CHUNK_ELEMENTS = 2_000_000  # rows x resamples handled at once: 16 MB per temporary float64 array


# ---------------------------------------------------------------------------------------------------
# Metrics of scores


def auroc(label: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Area under the ROC curve = P(score of a positive > score of a negative), ties counted half.

    Args:
        label: [n] 1 positive, 0 negative.
        score: [n] any monotone scale.
        weight: [S, n] or None.

    Returns:
        [S] (a float without weights); NaN where a class has no weight.
    """
    return _one(lambda w: _auroc(*_class_counts(label, score, w)), len(label), weight)


def auprc(label: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Average precision: sum over thresholds of (recall step) x precision, no interpolation.

    Args and return as `auroc`.
    """
    return _one(lambda w: _auprc(*_class_counts(label, score, w)), len(label), weight)


def auroc_and_auprc(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Both, [S, 2], for one sort of the scores."""
    counts = _class_counts(label, score, weight)
    return np.stack([_auroc(*counts), _auprc(*counts)], axis=1)


def _class_counts(
    label: np.ndarray, score: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and negatives per distinct score, ascending: two arrays [S, G]."""
    score = np.asarray(score)
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positive = np.asarray(label)[order] > 0
    weights = weight[:, order].astype(np.float64)
    positives = weights * positive
    negatives = weights - positives
    if len(starts) == len(ordered):
        return positives, negatives
    return (
        np.add.reduceat(positives, starts, axis=1),
        np.add.reduceat(negatives, starts, axis=1),
    )


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    below = np.cumsum(negatives, axis=1)
    total = below[:, -1] * positives.sum(axis=1)
    below -= 0.5 * negatives  # half of the ties
    pairs = np.einsum("sg,sg->s", positives, below)
    return _divide(pairs, total)


def _auprc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    true = np.cumsum(positives[:, ::-1], axis=1)
    called = true + np.cumsum(negatives[:, ::-1], axis=1)
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    area = np.einsum("sg,sg->s", positives[:, ::-1], precision)
    # Without negatives the value would be a meaningless 1.
    return np.where(negatives.sum(axis=1) > 0, _divide(area, true[:, -1]), np.nan)


# ---------------------------------------------------------------------------------------------------
# Metrics of decisions


def accuracy(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Share of rows [n] whose predicted class is the true one; weight and return as `auroc`."""
    return mean(np.asarray(label) == np.asarray(prediction), weight)


def mean(value: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Weighted mean of values [n]; e.g. of hits, which makes it Recall@k."""
    values = np.asarray(value, np.float64)
    return _one(lambda w: _divide(w @ values, w.sum(axis=1)), len(values), weight)


def median(value: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Weighted median of values [n]: between the two middle ones when the weight splits evenly."""
    values = np.asarray(value, np.float64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def weighted(w: np.ndarray) -> np.ndarray:
        cumulative = np.cumsum(w[:, order].astype(np.float64), axis=1)
        half = cumulative[:, -1:] / 2
        lower = np.argmax(cumulative >= half, axis=1)
        upper = np.argmax(cumulative > half, axis=1)
        return np.where(half[:, 0] > 0, (ordered[lower] + ordered[upper]) / 2, np.nan)

    return _one(weighted, len(values), weight)


def f1(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """F1 of binary decisions [n]; NaN where there are no positive labels."""

    def weighted(w: np.ndarray) -> np.ndarray:
        tp, fp, fn, _ = _confusion(label, prediction, w)
        return np.where(tp + fn > 0, _divide(2 * tp, 2 * tp + fp + fn), np.nan)

    return _one(weighted, len(label), weight)


def mcc(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> Any:
    """Matthews correlation of binary decisions [n]: 0 for constant decisions, NaN for a single class."""

    def weighted(w: np.ndarray) -> np.ndarray:
        tp, fp, fn, tn = _confusion(label, prediction, w)
        classes = (tp + fn) * (tn + fp)
        scale = np.sqrt(classes * ((tp + fp) * (tn + fn)))
        value = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(tp), where=scale > 0)
        return np.where(classes > 0, value, np.nan)

    return _one(weighted, len(label), weight)


def macro_f1(
    label: np.ndarray, prediction: np.ndarray, classes: int, weight: np.ndarray | None = None
) -> Any:
    """Mean of the one-against-rest F1 over the classes that occur as label or prediction.

    Args:
        label, prediction: [n] class indices below `classes`.
        classes: K.
        weight: [S, n] or None.
    """

    def weighted(w: np.ndarray) -> np.ndarray:
        scores = []
        for k in range(classes):
            tp, fp, fn, _ = _confusion(np.asarray(label) == k, np.asarray(prediction) == k, w)
            scores.append(_divide(2 * tp, 2 * tp + fp + fn))
        return nanmean(np.stack(scores, axis=1))

    return _one(weighted, len(label), weight)


def best_threshold(label: np.ndarray, score: np.ndarray, *, by: str = "mcc") -> float:
    """Threshold t that maximises F1 or MCC of `score >= t`; 0.5 if a class is missing.

    Use it on validation rows, never on the rows that are reported.
    """
    counts = _class_counts(label, score, np.ones((1, len(label))))
    positives, negatives = (c[0, ::-1] for c in counts)
    if not positives.sum() or not negatives.sum():
        return 0.5
    tp, fp = np.cumsum(positives), np.cumsum(negatives)
    fn, tn = tp[-1] - tp, fp[-1] - fp
    if by == "f1":
        quality = 2 * tp / (2 * tp + fp + fn)
    elif by == "mcc":
        scale = np.sqrt((tp + fn) * (tn + fp) * ((tp + fp) * (tn + fn)))
        quality = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(tp), where=scale > 0)
    else:
        raise ValueError(f"by={by!r}: expected 'f1' or 'mcc'")
    thresholds = np.unique(score)[::-1]
    best = int(np.argmax(quality))
    # Halfway to the next lower score, so that rounding does not flip the rows at the threshold.
    below = thresholds[best + 1] if best + 1 < len(thresholds) else thresholds[best]
    return float((thresholds[best] + below) / 2)


def _confusion(label: Any, prediction: Any, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    truth, called = np.asarray(label) > 0, np.asarray(prediction) > 0
    columns = np.stack([truth & called, ~truth & called, truth & ~called, ~truth & ~called], axis=1)
    tp, fp, fn, tn = (weight @ columns.astype(np.float64)).T
    return tp, fp, fn, tn


# ---------------------------------------------------------------------------------------------------
# Bootstrap


def bootstrap(
    metric_fn: Callable[..., np.ndarray],
    arrays: Sequence[np.ndarray],
    *,
    groups: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Metric:
    """A metric with its 95 % percentile interval.

    Args:
        metric_fn: called as `metric_fn(*arrays, weight=weight [S, n])`, returns [S].
        arrays: arrays with n rows.
        groups: [n] patient of each row. Patients are drawn with all their rows, because two images of
            one patient are not independent; None draws rows.
        samples: number of resamples; 0 gives no interval.
        seed: same seed, same interval.

    Returns:
        The metric; `low` and `high` are NaN with fewer than two patients, where resampling says nothing.
    """

    def columns(weight: np.ndarray) -> np.ndarray:
        return np.asarray(metric_fn(*arrays, weight=weight))[:, None]

    rows = len(arrays[0])
    return bootstrap_columns(columns, rows, groups=groups, samples=samples, seed=seed)[0]


def bootstrap_columns(
    metric_fn: Callable[[np.ndarray], np.ndarray],
    rows: int,
    *,
    groups: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
    n: Sequence[int] | None = None,
) -> list[Metric]:
    """M metrics with intervals from the same resamples.

    Args:
        metric_fn: weight [S, rows] -> [S, M].
        rows: number of rows.
        groups, samples, seed: see `bootstrap`.
        n: rows behind each metric, default all.
    """
    values = metric_fn(np.ones((1, rows)))[0]
    draws = np.full((0, len(values)), np.nan)
    if samples and rows:
        chunks = resamples(rows, groups=groups, samples=samples, seed=seed)
        draws = np.concatenate([metric_fn(w) for w in chunks])
    few = len(draws) == 0 or (groups is not None and len(np.unique(groups)) < 2)
    sizes = [rows] * len(values) if n is None else n
    return [
        _interval(float(value), draws[:0, m] if few else draws[:, m], int(sizes[m]))
        for m, value in enumerate(values)
    ]


def resamples(
    rows: int, *, groups: np.ndarray | None = None, samples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields weights int32 [S, rows] that add up to `samples` resamples, a few MB at a time."""
    if groups is None:
        member, number = np.arange(rows), rows
    else:
        unique, member = np.unique(groups, return_inverse=True)
        number = len(unique)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_ELEMENTS // max(rows, 1))
    for start in range(0, samples, step):
        size = min(step, samples - start)
        drawn = rng.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        yield counts.astype(np.int32)[:, member]


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN entries; NaN (and no warning) where all are NaN."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def _interval(value: float, draws: np.ndarray, n: int) -> Metric:
    defined = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(defined):
        return Metric(value, n=n, undefined=len(draws) - len(defined))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Metric(value, float(low), float(high), n, len(draws) - len(defined))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient in float64, NaN where the denominator is 0."""
    numerator = np.asarray(numerator, np.float64)
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def _one(weighted: Callable[[np.ndarray], np.ndarray], rows: int, weight: np.ndarray | None) -> Any:
    """Applies a metric of weights; without weights, of ones, as a float."""
    if weight is None:
        return float(weighted(np.ones((1, rows)))[0])
    return weighted(weight)
