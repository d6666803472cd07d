"""Without these, an adapter could learn from images it was not given, or lose what the prompts know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.few_shot import FewShot, Prompted, tip_margin, train_adapter

WIDTH = 32  # a quarter of it must hold what the images teach
NAMES = ("label 0", "label 1")
PROMPTS = {name: {"positive": [name], "negative": [f"no {name}"]} for name in NAMES}


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode(texts: list[str]) -> np.ndarray:
    """Axes 0 and 1 for the labels, 2 and 3 for their absence."""
    places = [int(t[-1]) + 2 * t.startswith("no ") for t in texts]
    return np.eye(WIDTH, dtype=np.float32)[places]


def blind(texts: list[str]) -> np.ndarray:
    """Prompts that say nothing."""
    return np.ones((len(texts), WIDTH), np.float32) / WIDTH**0.5


def splits(fake: Any, shift: int = 0) -> dict:
    """Embeddings on the axes of the prompts, or `shift` axes beside them."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, rows in (("train", 80), ("validation", 40), ("test", 50)):
        label = (rng.random((rows, 2)) < 0.5).astype(np.float32)
        x = np.zeros((rows, WIDTH))
        x[:, shift : shift + 4] = np.concatenate([label, 1 - label], axis=1)
        parts[name] = fake.features(x + 1e-3 * rng.normal(size=x.shape), label)
    return parts


def run(fake: Any, parts: dict, encode_text: Any = encode, **options: Any) -> Any:
    access = fake.access(parts)
    task = FewShot(bootstrap_samples=20, **{"prompts": PROMPTS, "seeds": (0, 1), **options})
    result = task(fake.eval(access), encode_text, 10.0)
    values = {k.removeprefix("few_shot/fake/"): m.value for k, m in result.metrics.items()}
    return result, values, access


def test_tip_margin_by_hand() -> None:
    prompted = Prompted(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 2.0)
    memory = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    drawn = [(np.array([0, 2]), np.array([1]))]
    found = tip_margin(np.array([[1.0, 0.0]]), memory, drawn, prompted, alpha=3.0, beta=5.0)
    images = np.exp(0) + np.exp(-5 * 0.4) - np.exp(-5)
    assert found[0, 0] == pytest.approx(2 * (1 - 0) + 3 * images)
    nothing = [(np.array([], int), np.array([], int))]
    assert tip_margin(memory[:1], memory, nothing, prompted, 3.0, 5.0)[0, 0] == 2.0


@pytest.mark.parametrize("method", ["tip_adapter", "clip_adapter"])
def test_good_prompts_stay_good(fake, method: str) -> None:
    _, values, _ = run(fake, splits(fake), method=method, shots=(1, 4), steps=20)
    assert values["macro_auroc_0shot"] == values["macro_auroc_1shot"] == 1.0
    assert values["auroc_4shot_label_1"] == 1.0


@pytest.mark.parametrize("method", ["tip_adapter", "clip_adapter"])
def test_images_teach_what_prompts_do_not_know(fake, method: str) -> None:
    """The prompts point at other axes than the images."""
    options = dict(method=method, shots=(16,), ratio=0.5, steps=200, learning_rate=1e-2)
    _, values, _ = run(fake, splits(fake, shift=4), **options)
    assert values["macro_auroc_0shot"] < 0.75
    assert values["macro_auroc_16shot"] > 0.99


def test_blind_prompts_are_at_chance(fake) -> None:
    parts = splits(fake)
    for name, part in parts.items():
        parts[name] = fake.features(np.ones((len(part), WIDTH)), part.label)
    for method in ("tip_adapter", "clip_adapter"):
        _, values, _ = run(fake, parts, blind, method=method, shots=(4,), steps=5)
        assert set(values.values()) == {0.5}


def test_alpha_and_beta_come_from_the_validation_split(fake) -> None:
    """Validation labels are turned round, so the smallest weight of the images is best there."""
    parts = splits(fake, shift=4)
    result, _, access = run(fake, parts, blind, shots=(16,), alphas=(1.0, 0.0), betas=(5.0,))
    assert result.artefacts["chosen"]["16shot"] == [{"alpha": 1.0, "beta": 5.0}] * 2
    assert "validation" in access.asked
    turned = parts["validation"]
    parts["validation"] = fake.features(turned.image_pooled, 1 - turned.label)
    result, values, _ = run(fake, parts, blind, shots=(16,), alphas=(1.0, 0.0), betas=(5.0,))
    assert result.artefacts["chosen"]["16shot"] == [{"alpha": 0.0, "beta": 5.0}] * 2
    assert values["macro_auroc_16shot"] == 0.5
    _, _, access = run(fake, parts, blind, shots=(1,), alphas=(1.0,), betas=(5.0,))
    assert "validation" not in access.asked


def test_the_adapter_learns_from_the_drawn_pairs_alone() -> None:
    rng = np.random.default_rng(0)
    memory = unit(rng.normal(size=(20, WIDTH)))
    prompted = Prompted(encode(list(NAMES)), encode([f"no {n}" for n in NAMES]), 10.0)
    drawn = [(np.array([0, 1]), np.array([2, 3])), (np.array([4]), np.array([5]))]
    options = dict(ratio=0.2, steps=30, learning_rate=1e-2, seed=0)
    found = train_adapter(memory, drawn, prompted, **options)(memory[:6])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    changed = memory.copy()
    changed[6:] = unit(rng.normal(size=(14, WIDTH)))
    again = train_adapter(changed, drawn, prompted, **options)(memory[:6])
    np.testing.assert_array_equal(again, found)
    same = train_adapter(memory, drawn, prompted, **{**options, "ratio": 0.0})(memory[:6])
    np.testing.assert_allclose(same, memory[:6], atol=1e-6)
    before = prompted.margin(memory[:4])[:, 0]
    after = prompted.margin(found[:4])[:, 0]
    assert (after - before)[:2].mean() > (after - before)[2:].mean()


def test_single_class_columns_and_missing_positives(fake) -> None:
    parts = splits(fake)
    train, test = parts["train"], parts["test"]
    parts["train"] = fake.features(train.image_pooled, train.label * [0, 1])
    parts["test"] = fake.features(test.image_pooled, test.label * [1, 0])
    for method in ("tip_adapter", "clip_adapter"):
        result, values, _ = run(fake, parts, method=method, shots=(4,), steps=5)
        assert np.isnan(values["auroc_4shot_label_1"])
        assert values["auroc_4shot_label_0"] == values["macro_auroc_4shot"]
        assert set(result.artefacts["excluded_labels"]) == {"label 1"}
        assert result.predictions["margin_4shot"].shape == (50, 2, 2)


def test_what_cannot_run(fake) -> None:
    with pytest.raises(UserError, match="its own images"):
        FewShot()(fake.eval(fake.access(splits(fake), split="train")), encode, 1.0)
    with pytest.raises(UserError, match="'label 1' has no 'positive' prompts"):
        run(fake, splits(fake), prompts={"label 0": PROMPTS["label 0"]})
    for options in (
        dict(method="coop"),
        dict(shots=()),
        dict(shots=(0,)),
        dict(seeds=()),
        dict(alphas=()),
        dict(ratio=1.5),
        dict(steps=0),
        dict(uncertain_policy="x"),
    ):
        with pytest.raises(UserError):
            FewShot(**options)
