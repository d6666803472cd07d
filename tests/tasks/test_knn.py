"""Without these, a neighbour could vote with an unknown label, or the order of the files could decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.tasks import knn
from medvlp_jax.tasks.knn import Knn, vote


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def ring(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


ALL = np.ones((4, 1), bool)


def test_votes_by_hand() -> None:
    memory, label = ring(1, 2, 3, 4), np.array([[1.0], [0.0], [1.0], [1.0]])
    found = vote(ring(0), memory, label, ALL, [1, 2, 3, 4, 9], temperature=0)
    np.testing.assert_allclose(found[:, 0, 0], [1, 1 / 2, 2 / 3, 3 / 4, 3 / 4])
    weight = np.exp((np.cos(np.deg2rad([1, 2])) - 1) / 0.001)
    found = vote(ring(0), memory, label, ALL, [2], temperature=0.001)
    assert found[0, 0, 0] == pytest.approx(weight[0] / weight.sum())


def test_ties_for_the_last_place_share_it_in_any_order() -> None:
    memory, label = ring(1, 5, 5, -5), np.array([[0.0], [1.0], [0.0], [1.0]])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        found = vote(ring(0), memory[order], label[order], ALL, [2, 3], temperature=0)
        np.testing.assert_allclose(found[:, 0, 0], [(2 / 3) / 2, (4 / 3) / 3], atol=1e-9)


def test_a_constant_model_gives_the_prevalence_of_the_memory() -> None:
    label = (np.random.default_rng(0).random((50, 2)) < 0.3).astype(float)
    found = vote(np.ones((3, 1)), np.ones((50, 1)), label, np.ones((50, 2), bool), [1, 7], 0.07)
    np.testing.assert_allclose(found, np.broadcast_to(label.mean(axis=0), (2, 3, 2)))


def test_only_known_labels_vote() -> None:
    memory = ring(1, 2, 3, 4)
    label = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], float)
    known = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], bool)
    found = vote(ring(0), memory, label, known, [2], temperature=0)[0, 0]
    assert found.tolist() == [0.0, 0.0, 0.0]  # two known zeros; two nearest; known nowhere
    known[0, 0] = True
    assert vote(ring(0), memory, label, known, [2], 0)[0, 0, 0] == 0.5


def test_cold_weights_do_not_underflow() -> None:
    found = vote(ring(180), ring(0, 1, 2, 3), np.ones((4, 1)), ALL, [2], temperature=1e-4)
    assert found[0, 0, 0] == pytest.approx(1.0)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    memory, query = unit(rng.normal(size=(30, 4))), unit(rng.normal(size=(17, 4)))
    label, known = rng.random((30, 3)) < 0.5, rng.random((30, 3)) < 0.8
    whole = vote(query, memory, label, known, [1, 5], 0.07)
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 5 * 30)
    np.testing.assert_allclose(vote(query, memory, label, known, [1, 5], 0.07), whole)


def splits(fake: Any) -> dict:
    """Images with the same labels have almost the same features."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, rows in (("train", 60), ("validation", 30), ("test", 40)):
        label = (rng.random((rows, 2)) < 0.5).astype(np.float32)
        x = np.concatenate([label, 1 - label], axis=1)
        parts[name] = fake.features(x + 1e-3 * rng.normal(size=x.shape), label)
    return parts


def run(fake: Any, parts: dict, **options: Any) -> Any:
    access = fake.access(parts)
    result = Knn(bootstrap_samples=20, **options)(fake.eval(access), lambda t: np.zeros(0), 1.0)
    return result, {k.removeprefix("knn/fake/"): m.value for k, m in result.metrics.items()}, access


def test_perfect_and_constant_features(fake) -> None:
    parts = splits(fake)
    result, values, access = run(fake, parts)
    assert set(values) == {"macro_auroc", "auroc_label_0", "auroc_label_1"}
    assert set(values.values()) == {1.0}
    assert result.artefacts["k"] == 5
    assert "validation" in access.asked
    for name, part in parts.items():
        parts[name] = fake.features(np.ones((len(part), 3)), part.label)
    _, values, _ = run(fake, parts)
    assert set(values.values()) == {0.5}


def test_k_comes_from_the_validation_split(fake) -> None:
    """The nearest training row of every image is mislabelled; the next four are right."""
    rng = np.random.default_rng(1)

    def part(rows: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.tile([[1.0], [0.0]], (rows // 2, 1))
        return np.where(label > 0, ring(10), ring(80)) + 1e-4 * rng.normal(size=(rows, 2)), label

    x = ring(10, 12, 13, 14, 15, 80, 82, 83, 84, 85)
    label = np.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 0.0])[:, None]
    parts = {"train": fake.features(x, label)}
    parts |= {name: fake.features(*part(20)) for name in ("validation", "test")}
    result, values, _ = run(fake, parts, ks=(1, 5), temperature=0.0)
    assert result.artefacts["k"] == 5
    assert result.artefacts["validation_macro_auroc"] == [0.0, 1.0]
    assert values["macro_auroc"] == 1.0
    del parts["validation"]
    _, values, _ = run(fake, parts, ks=(1,), temperature=0.0)
    assert values["macro_auroc"] == 0.0


def test_single_class_columns_and_masks(fake) -> None:
    parts = splits(fake)
    test = parts["test"]
    mask = np.ones_like(test.label_mask)
    mask[:10, 0] = 0
    parts["test"] = fake.features(test.image_pooled, test.label * [1, 0], label_mask=mask)
    result, values, _ = run(fake, parts)
    assert np.isnan(values["auroc_label_1"])
    assert values["macro_auroc"] == 1.0
    assert set(result.artefacts["excluded_labels"]) == {"label 1"}
    assert result.metrics["knn/fake/auroc_label_0"].n == 30


def test_what_cannot_run(fake) -> None:
    parts = splits(fake)
    with pytest.raises(UserError, match="find each image itself"):
        Knn()(fake.eval(fake.access(parts, split="train")), lambda t: np.zeros(0), 1.0)
    for options in (
        dict(ks=()),
        dict(ks=(0,)),
        dict(temperature=-1.0),
        dict(features="text_embed"),
        dict(uncertain_policy="x"),
    ):
        with pytest.raises(UserError):
            Knn(**options)
