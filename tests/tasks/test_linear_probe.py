"""Without these, a probe could learn from test rows, unknown labels or the wrong share of patients."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.linear_probe import LinearProbe, logistic_path, percent, standardise


def separable(rows: int, seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Feature k says label k; the other two features are noise."""
    rng = np.random.default_rng(seed)
    label = (rng.random((rows, 3)) < 0.4).astype(np.float32)
    x = np.concatenate([label, rng.normal(size=(rows, 2))], axis=1)
    x[:, :3] += noise * rng.normal(size=(rows, 3))
    return x, label


def splits(fake: Any, noise: float = 0.0, **test: Any) -> dict:
    return {
        "train": fake.features(*separable(200, 0, noise)),
        "validation": fake.features(*separable(60, 1, noise)),
        "test": fake.features(*separable(80, 2, noise), **test),
    }


def run(fake: Any, parts: dict, **options: Any) -> Any:
    access = fake.access(parts)
    task = LinearProbe(
        bootstrap_samples=20, **{"fractions": (0.1, 1.0), "seeds": (0, 1), **options}
    )
    return task(fake.eval(access), lambda texts: np.zeros(0), 1.0), access


def test_features_that_hold_the_labels_score_one(fake) -> None:
    result, _ = run(fake, splits(fake))
    for share in ("10pct", "100pct"):
        assert result.metrics[f"linear_probe/fake/macro_auroc_{share}"].value == 1.0
        assert result.metrics[f"linear_probe/fake/auroc_{share}_label_1"].value == 1.0
    metric = result.metrics["linear_probe/fake/macro_auroc_100pct"]
    assert metric.low == metric.high == 1.0
    assert metric.n == 80


def test_constant_features_are_at_chance(fake) -> None:
    parts = splits(fake)
    for name, part in parts.items():
        parts[name] = fake.features(np.full((len(part), 4), 7.3), part.label)
    result, _ = run(fake, parts)
    assert {m.value for m in result.metrics.values()} == {0.5}


def test_embeddings_or_pooled_features(fake) -> None:
    parts = splits(fake)
    for name, part in parts.items():
        parts[name] = fake.features(
            part.image_pooled, part.label, image_embed=np.ones((len(part), 4), np.float32)
        )
    pooled, _ = run(fake, parts)
    assert pooled.metrics["linear_probe/fake/macro_auroc_100pct"].value == 1.0
    embed, _ = run(fake, parts, features="image_embed")
    assert embed.metrics["linear_probe/fake/macro_auroc_100pct"].value == 0.5


def test_it_is_the_regression_of_scikit_learn_with_the_c_of_the_validation_split(fake) -> None:
    parts = splits(fake, noise=1.5)
    result, access = run(fake, parts, fractions=(1.0,), cs=(10.0, 1e-4))
    assert set(access.asked) == {"train", "validation", "test"}
    train, test = parts["train"], parts["test"]
    x, x_test, x_val = standardise(
        train.image_pooled, [test.image_pooled, parts["validation"].image_pooled]
    )
    quality = {}
    for c in (1e-4, 10.0):
        models = [LogisticRegression(C=c).fit(x, train.label[:, k]) for k in range(3)]
        scores = [m.decision_function(x_val) for m in models]
        truth = parts["validation"].label
        quality[c] = np.mean([roc_auc_score(truth[:, k], scores[k]) for k in range(3)])
    summary = result.artefacts["fits"]["100pct"]
    assert summary["c"] == [max(quality, key=lambda c: quality[c])]
    assert summary["validation_macro_auroc"][0] == pytest.approx(list(quality.values()), abs=2e-3)
    model = LogisticRegression(C=summary["c"][0], tol=1e-8).fit(x, train.label[:, 1])
    np.testing.assert_allclose(
        result.predictions["log_odds_100pct"][:, 1, 0], model.decision_function(x_test), atol=0.02
    )
    assert summary["not_converged"] == [0]


def test_one_c_reads_no_validation_split(fake) -> None:
    parts = splits(fake)
    del parts["validation"]
    result, access = run(fake, parts, cs=(1.0,))
    assert "validation" not in access.asked
    assert result.artefacts["fits"]["10pct"]["c"] == [1.0, 1.0]


def test_shares_are_of_labelled_patients(fake) -> None:
    x, label = separable(200, 0)
    mask = np.ones_like(label)
    mask[100:] = 0  # the second half has no labels
    patients = np.arange(200) // 2
    parts = splits(fake)
    parts["train"] = fake.features(x, label, label_mask=mask, subject_id=patients)
    result, _ = run(fake, parts)
    assert result.artefacts["labelled_patients"] == 50
    assert result.artefacts["fits"]["10pct"]["train_rows"] == [10, 10]
    assert result.artefacts["fits"]["100pct"]["train_rows"] == [100]
    rows = result.predictions["train_example_index_10pct_0"]
    assert rows.max() < 100
    assert len(np.unique(patients[rows])) == 5
    other = result.predictions["train_example_index_10pct_1"]
    assert set(rows) != set(other)
    assert result.predictions["log_odds_10pct"].shape == (80, 3, 2)
    again, _ = run(fake, parts)
    for key, value in result.predictions.items():
        np.testing.assert_array_equal(again.predictions[key], value)


def test_unknown_labels_are_neither_learnt_nor_scored(fake) -> None:
    parts = splits(fake)
    train = parts["train"]
    label, mask = train.label.copy(), np.ones_like(train.label)
    label[:100, 0] = 1 - label[:100, 0]  # half of label 0 is wrong, and marked unknown
    mask[:100, 0] = 0
    parts["train"] = fake.features(train.image_pooled, label, label_mask=mask)
    test = parts["test"]
    wrong, known = test.label.copy(), np.ones_like(test.label)
    wrong[:40, 0] = 1 - wrong[:40, 0]
    known[:40, 0] = 0
    parts["test"] = fake.features(test.image_pooled, wrong, label_mask=known)
    result, _ = run(fake, parts, fractions=(1.0,))
    metric = result.metrics["linear_probe/fake/auroc_100pct_label_0"]
    assert metric.value == 1.0
    assert metric.n == 40


@pytest.mark.parametrize(("policy", "expected"), [("ignore", 1.0), ("ones", 1.0), ("zeros", None)])
def test_uncertain_labels(fake, policy: str, expected: float | None) -> None:
    """In all splits the positives of label 0 from row 10 on are uncertain."""
    parts = splits(fake)
    for name, part in parts.items():
        label = part.label.copy()
        late = (np.arange(len(label)) >= 10) & (label[:, 0] == 1)
        label[late, 0] = -1
        parts[name] = fake.features(part.image_pooled, label)
    result, _ = run(fake, parts, fractions=(1.0,), uncertain_policy=policy)
    metric = result.metrics["linear_probe/fake/auroc_100pct_label_0"]
    uncertain = int((parts["test"].label[:, 0] < 0).sum())
    assert uncertain > 10
    assert metric.n == 80 - (uncertain if policy == "ignore" else 0)
    if expected is None:
        assert metric.value < 0.9  # negatives that look like positives
    else:
        assert metric.value == expected


def test_single_class_columns(fake) -> None:
    """Label 0 has no positive in train, label 1 none in test, label 2 is normal."""
    parts = splits(fake)
    train, test = parts["train"], parts["test"]
    parts["train"] = fake.features(train.image_pooled, train.label * [0, 1, 1])
    parts["test"] = fake.features(test.image_pooled, test.label * [1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result, _ = run(fake, parts, fractions=(1.0,))
    values = {k.rpartition("_")[2]: m.value for k, m in result.metrics.items() if "label" in k}
    assert values["0"] == 0.5  # nothing to learn from: chance, not left out
    assert np.isnan(values["1"])
    assert values["2"] == 1.0
    assert result.metrics["linear_probe/fake/macro_auroc_100pct"].value == 0.75
    assert set(result.artefacts["excluded_labels"]) == {"label 1"}
    assert result.artefacts["fits"]["100pct"]["single_class_in_train"] == [["label 0"]]


def test_intervals_come_from_patients(fake) -> None:
    one, _ = run(fake, splits(fake, noise=1.5, subject_id=np.zeros(80, int)))
    key = "linear_probe/fake/macro_auroc_100pct"
    assert np.isnan(one.metrics[key].low)
    many, _ = run(fake, splits(fake, noise=1.5))
    assert many.metrics[key].low < many.metrics[key].value < many.metrics[key].high


def test_fits_that_do_not_converge_are_counted() -> None:
    x, label = separable(100, 0, noise=1.0)
    _, unfinished = logistic_path(x, label[:, 0], [x], [1.0, 100.0], max_iter=1)
    assert unfinished == 2


def test_a_constant_feature_is_only_centred() -> None:
    x = np.stack([np.full(50, 1e6), np.arange(50)], axis=1).astype(np.float32)
    scaled, other = standardise(x, [x + 1])
    assert (scaled[:, 0] == 0).all()
    assert scaled[:, 1].std() == pytest.approx(1, abs=1e-5)
    assert np.abs(other[:, 0]).max() <= 1


def test_percent() -> None:
    assert [percent(f) for f in (0.005, 0.01, 0.07, 0.1, 1)] == [
        "0.5pct",
        "1pct",
        "7pct",
        "10pct",
        "100pct",
    ]


def test_what_cannot_run(fake) -> None:
    parts = splits(fake)
    access = fake.access(parts, split="train")
    with pytest.raises(UserError, match="its own training rows"):
        LinearProbe()(fake.eval(access), lambda texts: np.zeros(0), 1.0)
    with pytest.raises(UserError, match="'Edema' is no label"):
        run(fake, parts, labels=("Edema",))
    data = fake.eval(fake.access(parts))
    object.__setattr__(data, "access", None)
    with pytest.raises(UserError, match="--tasks linear_probe"):
        LinearProbe()(data, lambda texts: np.zeros(0), 1.0)
    parts["train"] = fake.features(
        parts["train"].image_pooled, parts["train"].label, label_mask=np.zeros((200, 3), np.float32)
    )
    assert "known label" in run(fake, parts)[0].artefacts["skipped"]


@pytest.mark.parametrize(
    "options",
    [
        dict(features="tokens"),
        dict(fractions=(0.0,)),
        dict(fractions=(2.0,)),
        dict(cs=()),
        dict(seeds=()),
        dict(uncertain_policy="maybe"),
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        LinearProbe(**options)
