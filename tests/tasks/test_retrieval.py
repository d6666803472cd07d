"""Without these, a collapsed model or repeated reports could pass for good retrieval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import comb

from medvlp_jax.errors import UserError
from medvlp_jax.tasks import retrieval
from medvlp_jax.tasks.base import EvalData
from medvlp_jax.tasks.retrieval import Retrieval


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_data(image: np.ndarray, text: np.ndarray, **changes) -> EvalData:
    n = len(image)
    none = np.zeros((n, 0), np.float32)
    fields = dict(
        image_embed=unit(image),
        text_embed=unit(text),
        label=none,
        label_mask=none,
        text_id=np.arange(n),
        subject_id=np.arange(n),
        study_id=np.arange(n),
        example_index=np.arange(n),
        label_names=(),
        dataset="fake",
    )
    return EvalData(**{**fields, **changes})


def run(data: EvalData, **options) -> dict[str, float]:
    found = Retrieval(bootstrap_samples=20, **options)(data, lambda texts: np.zeros(0), 1.0).metrics
    return {key.removeprefix("retrieval/fake/"): metric.value for key, metric in found.items()}


def test_perfect_embeddings() -> None:
    x = np.random.default_rng(0).normal(size=(40, 16))
    found = run(make_data(x, x))
    for side in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert found[f"{side}_recall_at_{k}"] == 1.0
            assert found[f"{side}_recall_at_{k}_chance"] == pytest.approx(k / 40)
        assert found[f"{side}_median_rank"] == 1.0
        assert found[f"{side}_median_rank_chance"] == 20.5


def test_constant_embeddings_are_at_chance_not_at_one() -> None:
    same = np.random.default_rng(0).normal(size=(1, 64)).repeat(50, axis=0)
    found = run(make_data(same, same))
    for side in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert found[f"{side}_recall_at_{k}"] == pytest.approx(k / 50)
        assert found[f"{side}_median_rank"] == 25.5


def test_constant_embeddings_with_repeated_texts_are_at_the_reported_chance() -> None:
    same = np.ones((30, 4))
    text_id = np.repeat(np.arange(10), 3)
    found = run(make_data(same, same, text_id=text_id))
    for k in (1, 5, 10):
        chance = 1 - comb(27, k) / comb(30, k)
        assert found[f"image_to_text_recall_at_{k}"] == pytest.approx(chance)
        assert found[f"image_to_text_recall_at_{k}_chance"] == pytest.approx(chance)


def test_one_wrong_pair_by_hand() -> None:
    text = np.eye(4)
    image = np.eye(4)[[1, 0, 2, 3]] + 0.5 * np.eye(4)  # images 0 and 1 see their own text second
    found = run(make_data(image, text), ks=(1, 2))
    assert found["image_to_text_recall_at_1"] == 0.5
    assert found["image_to_text_recall_at_2"] == 1.0
    assert found["image_to_text_median_rank"] == 1.5


def test_same_text_counts_as_correct_unless_rows_are_asked_for() -> None:
    text = np.eye(5)[[0, 0, 0, 1, 2]]
    image = np.eye(5)[[0, 0, 0, 1, 2]]
    data = make_data(image, text, text_id=np.array([7, 7, 7, 8, 9]))
    by_text = run(data)
    assert by_text["image_to_text_recall_at_1"] == 1.0
    assert by_text["text_to_image_recall_at_1"] == 1.0
    by_row = run(data, positives="row")
    # rows 0-2 share first place: one in three
    assert by_row["image_to_text_recall_at_1"] == pytest.approx((3 * (1 / 3) + 2) / 5)


def test_unique_gallery() -> None:
    image = np.eye(6)[[0, 0, 1, 2, 3, 3]]
    data = make_data(image, image, text_id=np.array([4, 4, 5, 6, 7, 7]))
    result = Retrieval(gallery="unique", bootstrap_samples=20)(data, lambda t: np.zeros(0), 1.0)
    found = result.metrics
    assert found["retrieval/fake/image_to_text_recall_at_1"].value == 1.0
    assert found["retrieval/fake/image_to_text_recall_at_1_chance"].value == pytest.approx(1 / 4)
    assert found["retrieval/fake/text_to_image_recall_at_1"].value == 1.0
    assert found["retrieval/fake/text_to_image_recall_at_1"].n == 4
    expected = np.mean([2, 1, 1, 2]) / 6
    key = "retrieval/fake/text_to_image_recall_at_1_chance"
    assert found[key].value == pytest.approx(expected)
    assert result.artefacts["gallery"] == {"texts": 4, "images": 6}


def test_expected_hits_match_random_tie_breaking() -> None:
    rng = np.random.default_rng(0)
    ranking = retrieval.Ranking(*(np.array([v]) for v in (2, 6, 2, 3)))
    order = rng.permuted(np.tile(np.arange(6), (20_000, 1)), axis=1)
    first = 2 + 1 + np.argmax(order < 2, axis=1)  # rank of the first of two correct among six tied
    for k in (1, 2, 3, 5, 8, 10):
        simulated = (first <= k).mean()
        assert retrieval.hit_probability(ranking, k)[0] == pytest.approx(simulated, abs=0.015)
    assert retrieval.expected_rank(ranking)[0] == pytest.approx(first.mean(), abs=0.05)


def test_blocks_give_the_same_as_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = make_data(rng.normal(size=(37, 8)), rng.normal(size=(37, 8)))
    whole = run(data)
    monkeypatch.setattr(retrieval, "_CHUNK_ELEMENTS", 37 * 5)
    assert run(data) == whole
    similarity = data.image_embed @ data.text_embed.T
    ranks = 1 + (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    assert whole["image_to_text_recall_at_5"] == pytest.approx((ranks <= 5).mean())
    assert whole["image_to_text_median_rank"] == np.median(ranks)


def test_intervals_come_from_patients() -> None:
    rng = np.random.default_rng(0)
    data = make_data(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)))
    key = "retrieval/fake/image_to_text_recall_at_10"

    def interval(groups: np.ndarray) -> tuple[float, float]:
        changed = make_data(data.image_embed, data.text_embed, subject_id=groups)
        metric = Retrieval(bootstrap_samples=200)(changed, lambda t: np.zeros(0), 1.0).metrics[key]
        return metric.low, metric.high

    low, high = interval(np.arange(60))
    assert 0 <= low < high <= 1
    assert interval(np.arange(60)) == (low, high)
    assert all(np.isnan(v) for v in interval(np.zeros(60)))


def test_gallery_smaller_than_k() -> None:
    x = np.ones((3, 2))
    assert run(make_data(x, x))["image_to_text_recall_at_10"] == 1.0


@pytest.mark.parametrize(
    "options",
    [
        dict(gallery="x"),
        dict(positives="x"),
        dict(ks=(0,)),
        dict(gallery="unique", positives="row"),
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        Retrieval(**options)
