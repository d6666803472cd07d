"""Without these, a mixture could give wrong shares, mix up labels, or take two patients for one."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp_jax.data import mixture, pipeline, reports, transforms
from medvlp_jax.data.options import data_options
from medvlp_jax.errors import UserError

DATASET, SMALL = "synthetic_cxr/tiny", "image_text_folder/small"


@pytest.fixture
def mixed(config, built) -> dict:
    """`config.data`: 6 rows of the synthetic and 2 of the small dataset in each batch."""
    return {
        **config,
        "dataset": DATASET,
        "data_dir": str(built),
        "global_batch_size": 8,
        "mixture": {DATASET: 3, SMALL: 1},
    }


@pytest.fixture
def sources(built) -> list[pipeline.Source]:
    return [pipeline.open_source(name, "train", built) for name in (DATASET, SMALL)]


@pytest.mark.parametrize(
    ("weights", "batch", "expected"),
    [
        ((0.7, 0.3), 10, (7, 3)),
        ((0.7, 0.3), 32, (22, 10)),
        ((1, 1, 1), 8, (3, 3, 2)),
        ((5.0,), 4, (4,)),
        ((99, 1), 50, None),
    ],
)
def test_rows_of_a_batch(weights, batch, expected) -> None:
    named = {f"set{number}": weight for number, weight in enumerate(weights)}
    if expected is None:
        with pytest.raises(UserError, match=r"set1 has 0.01 of the weight.*a batch of 50"):
            mixture.row_counts(named, batch)
    else:
        assert mixture.row_counts(named, batch) == expected


def test_reading_joins_labels_and_names_the_ids(sources) -> None:
    both = mixture.Mixture(sources)
    assert both.name == f"{DATASET}+{SMALL}"
    assert both.label_names == (*sources[0].label_names, "even", "rare")
    assert both.feature_names == sources[0].feature_names | sources[1].feature_names
    start = len(sources[0])
    assert len(both) == start + len(sources[1])
    first, last, again = both.read([start + 1, 3, start])
    np.testing.assert_array_equal(first["label"], [*[-2] * 14, *sources[1][1]["label"]])
    np.testing.assert_array_equal(last["label"], [*sources[0][3]["label"], -2, -2])
    np.testing.assert_array_equal(again["label"], [*[-2] * 14, *sources[1][0]["label"]])
    assert first["subject_id"] == f"{SMALL}:{sources[1][1]['subject_id']}"
    assert last["study_id"] == f"{DATASET}:{sources[0][3]['study_id']}"
    assert first["image"] == sources[1][1]["image"]
    assert [e["image_id"] for e in both] == [e["image_id"] for s in sources for e in s]
    assert both[start]["image_id"] == sources[1][0]["image_id"]
    assert set(both.with_fields(("text",))[start]) == {"text"}
    for index in (-1, len(both)):
        with pytest.raises(IndexError, match=f"example {index} "):
            both.read([0, index])


def test_shared_labels_have_one_column(sources) -> None:
    both = mixture.Mixture([sources[1], sources[1]])
    assert both.label_names == ("even", "rare")
    np.testing.assert_array_equal(both[len(sources[1]) + 1]["label"], sources[1][1]["label"])


def test_batches_have_their_shares(mixed, tokenizer, sources) -> None:
    iterator = pipeline.train_iterator(mixed, tokenizer, seed=0)
    start = len(sources[0])
    assert iterator.num_examples == start + len(sources[1])
    assert iterator.steps_per_epoch == iterator.num_examples // 8
    view = data_options(mixed).image
    drawn, places = [], set()
    for _ in range(33):
        batch = next(iterator)
        of_small = batch["example_index"] >= start
        assert of_small.sum() == 2
        places.update(np.flatnonzero(of_small).tolist())
        assert (batch["label_mask"][of_small, :14] == 0).all()
        assert (batch["label_mask"][~of_small, 14:] == 0).all()
        assert (batch["label_mask"][of_small, 14] == 1).all()
        drawn.append(batch["example_index"])
        for row in np.flatnonzero(of_small)[:1]:
            example = sources[1][int(batch["example_index"][row]) - start]
            np.testing.assert_array_equal(
                batch["image"][row], transforms.eval_image(example["image"], view)
            )
            subject = f"{SMALL}:{example['subject_id']}"
            assert batch["subject_id"][row] == reports.stable_id(subject)
    assert len(places) == 8  # the datasets are spread over the rows, and so over the processes
    # Each dataset goes through its own epochs: 11 steps of 2 of the 23 small ones, 15 of 6 of 92.
    small = np.concatenate([d[d >= start] for d in drawn]).reshape(3, 22)
    assert [len(set(epoch)) for epoch in small] == [22, 22, 22]
    large = np.concatenate([d[d < start] for d in drawn])[:180].reshape(2, 90)
    assert [len(set(epoch)) for epoch in large] == [90, 90]


def test_texts_are_distinct_over_all_datasets(mixed, tokenizer, sources) -> None:
    # The same dataset under two names would give each text twice.
    chosen = {**mixed, "mixture": {SMALL: 1, "image_text_folder": 1}, "distinct": "text"}
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    for _ in range(20):
        assert len(set(next(iterator)["text_id"])) == 8


def test_tokenizer_knows_the_words_of_all(mixed) -> None:
    trained = pipeline.config_tokenizer({**mixed, "text": {**mixed["text"], "vocab_size": 900}})
    vocabulary = trained.backend.get_vocab()
    assert {"grey", "shade", "lungs"} <= set(vocabulary)
    assert pipeline.train_datasets({**mixed, "text_dataset": None}) == (DATASET, SMALL)


def test_evaluation_is_on_the_one_dataset(mixed, tokenizer) -> None:
    batches = pipeline.eval_batches(mixed, tokenizer, "validation")
    assert batches.source.name == DATASET
    assert batches.label_names == batches.source.label_names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "expected a dict"),
        ({"a": 0}, "positive weights"),
        ({"a": "much"}, "positive weights"),
        ("mimic_cxr", "expected a dict"),
        ({DATASET: 1, "image_text_folder/none": 1}, "not built"),
        ({DATASET: 1, SMALL: 100}, "less than one row"),
        ({DATASET: 1, SMALL: 30}, "needs .31.: set data.global_batch_size to less"),
    ],
)
def test_mixture_errors(mixed, tokenizer, value, message) -> None:
    chosen = {**mixed, "global_batch_size": 32, "mixture": value}
    with pytest.raises(UserError, match=message):
        pipeline.train_iterator(chosen, tokenizer, seed=0)
