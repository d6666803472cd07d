"""Without these, a batch could hold one patient or text twice where the config forbids it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from medvlp_jax.data import order, pipeline, reports, samplers
from medvlp_jax.data.options import data_options
from medvlp_jax.data.row_texts import TextEncoder
from medvlp_jax.errors import UserError

PATIENTS = np.arange(60) // 3
TEXTS = np.arange(60) % 20
EVERYONE = (np.arange(60),)
DATASET = "synthetic_cxr/tiny"


def assert_distinct(rows: np.ndarray, *keys: np.ndarray) -> None:
    for key in keys:
        assert len(np.unique(key[rows])) == len(rows), rows


def test_repeated_rows_are_replaced_and_the_others_stay() -> None:
    distinct = samplers.Distinct((PATIENTS, TEXTS), EVERYONE, seed=1)
    rows = np.array(
        [0, 1, 30, 20, 10]
    )  # 1 is of the patient of 0, 20 has the text of 0, 10 that of 30
    chosen = distinct(4, rows)
    assert chosen[[0, 2]].tolist() == [0, 30]
    assert_distinct(chosen, PATIENTS, TEXTS)
    assert rows.tolist() == [0, 1, 30, 20, 10]  # the input stays as it is
    free = np.array([0, 4, 8, 12])
    np.testing.assert_array_equal(distinct(4, free), free)


def test_replacements_depend_on_seed_and_step_only() -> None:
    rows = np.zeros(8, np.int64)
    first = samplers.Distinct((PATIENTS,), EVERYONE, seed=1)
    first(0, rows)
    again = samplers.Distinct((PATIENTS,), EVERYONE, seed=1)
    np.testing.assert_array_equal(first(5, rows), again(5, rows))
    assert (first(5, rows) != first(6, rows)).any()
    other = samplers.Distinct((PATIENTS,), EVERYONE, seed=2)
    assert (first(5, rows) != other(5, rows)).any()


def test_replacements_follow_the_weights() -> None:
    weights = np.where(np.arange(60) >= 57, 1.0, 1e-9)
    distinct = samplers.Distinct((np.arange(60),), EVERYONE, seed=0, weights=[weights])
    for step in range(20):
        assert sorted(distinct(step, np.zeros(4, np.int64)).tolist()) == [0, 57, 58, 59]


def test_replacements_come_from_the_same_pool() -> None:
    pools = (np.arange(40), np.arange(40, 60))
    distinct = samplers.Distinct((PATIENTS,), pools, seed=0)
    for step in range(20):
        rows = distinct(step, np.array([0, 0, 0, 45, 45]))
        assert ((rows < 40) == [True, True, True, False, False]).all()
        assert_distinct(rows, PATIENTS)


@pytest.mark.parametrize("case", range(30))
def test_what_is_accepted_can_always_be_filled(case) -> None:
    """Random data near the limit: whatever was drawn first, a batch that was promised is found."""
    rng = np.random.default_rng(case)
    keys = {
        "patient": rng.integers(0, rng.integers(4, 12), 40),
        "text": rng.integers(0, rng.integers(4, 12), 40),
    }
    pools, accepted = (np.arange(40),), 0
    for batch in range(1, 12):
        try:
            samplers.require_distinct(keys, pools, (batch,), "x")
        except UserError:
            break
        accepted = batch
        distinct = samplers.Distinct(tuple(keys.values()), pools, seed=case)
        for step in range(5):
            rows = distinct(step, rng.integers(0, 40, batch))
            assert_distinct(rows, *keys.values())
    assert accepted >= 1


def test_one_key_is_accepted_up_to_its_number_of_values() -> None:
    samplers.require_distinct({"patient": PATIENTS}, EVERYONE, (20,), "data")
    rows = samplers.Distinct((PATIENTS,), EVERYONE, seed=0)(0, np.zeros(20, np.int64))
    assert_distinct(rows, PATIENTS)
    with pytest.raises(UserError, match=r"21 rows of different patients.*data has 20 patients"):
        samplers.require_distinct({"patient": PATIENTS}, EVERYONE, (21,), "data")


def test_impossible_requests_say_what_is_there() -> None:
    keys = {"patient": PATIENTS, "text": TEXTS}
    with pytest.raises(UserError, match=r"29 examples that share neither.*15 rows.*20 were found"):
        samplers.require_distinct(keys, EVERYONE, (15,), "data")
    # The rows of another dataset may have all but one of the texts.
    pools = (np.arange(10), np.arange(10, 60))
    with pytest.raises(UserError, match=r"12 rows of different texts.*has 10 texts"):
        samplers.require_distinct({"text": TEXTS}, pools, (2, 10), "data")
    with pytest.raises(UserError, match=r"step 3.*are left"):
        samplers.Distinct((PATIENTS,), EVERYONE, seed=0)(3, np.zeros(21, np.int64))


def test_numbers_of_texts() -> None:
    assert samplers.numbered(["a", "", "b", "a", None, ""]).tolist() == [0, 1, 2, 0, 4, 5]


def test_mixed_batches_hold_all_parts_in_random_order() -> None:
    parts = [
        [np.arange(6) + 10 * step for step in range(4)],
        [np.array([100 + s]) for s in range(4)],
    ]
    mixed = samplers.Mixed(parts, seed=3)
    rows = [mixed(step, None) for step in range(4)]
    for step in range(4):
        assert sorted(rows[step]) == [*(np.arange(6) + 10 * step), 100 + step]
    assert len({int(np.argmax(r)) for r in rows}) > 1
    np.testing.assert_array_equal(rows[2], samplers.Mixed(parts, seed=3)(2, None))


def test_streams_and_images_of_a_row_have_their_own_numbers() -> None:
    draws = {
        samplers.row_rng(0, stream, position, number).random()
        for stream in range(9)
        for position in range(5)
        for number in range(3)
    }
    assert len(draws) == 9 * 5 * 3


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
@pytest.mark.parametrize("distinct", ["patient", "text", "patient_text"])
def test_batches_of_the_iterator_are_distinct(built, config, tokenizer, distinct, pairing) -> None:
    chosen = {**config, "dataset": DATASET, "global_batch_size": 12}
    chosen["text"] = {**config["text"], "sample": "impression"}
    plain = pipeline.train_iterator(chosen, tokenizer, seed=0)
    steps = plain.steps_per_epoch
    before = [next(plain) for _ in range(3 * steps)]
    iterator = pipeline.train_iterator(
        {**chosen, "distinct": distinct, "pairing": pairing}, tokenizer, seed=0
    )
    after = [next(iterator) for _ in range(3 * steps)]
    repeats, changed = 0, 0
    for old, new in zip(before, after, strict=True):
        if distinct != "text":
            assert len(set(new["subject_id"])) == 12
            repeats += len(set(old["subject_id"])) < 12
        if distinct != "patient":
            assert len(set(new["text_id"])) == 12
            repeats += len(set(old["text_id"])) < 12
        changed += int((old["example_index"] != new["example_index"]).sum())
    assert repeats  # the plain order did repeat some
    assert 0 < changed < 0.6 * 36 * steps or pairing == "unpaired"


def test_equal_texts_are_those_that_the_rows_get(built, config, tokenizer) -> None:
    chosen = {**config, "dataset": DATASET, "global_batch_size": 10, "distinct": "text"}
    chosen["text"] = {**config["text"], "sample": "impression"}
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    for _ in range(20):
        assert len(set(next(iterator)["text_id"])) == 10
    found = {
        reports.normalise_for_id(reports.clean_text(e["impression"]))
        for e in pipeline.open_source(DATASET, "train", built)
    }
    too_many = {**chosen, "global_batch_size": len(found) + 1}
    with pytest.raises(UserError, match=rf"has {len(found)} texts"):
        pipeline.train_iterator(too_many, tokenizer, seed=0)


def test_impossible_config_stops_before_training(config, tokenizer) -> None:
    chosen = {**config, "global_batch_size": 13, "distinct": "patient"}
    with pytest.raises(UserError, match=r"13 rows of different patients.* has 12 patients"):
        pipeline.train_iterator(chosen, tokenizer, seed=0)


def test_patients_without_names_cannot_be_distinct(built, config, tokenizer) -> None:
    source = pipeline.open_source(DATASET, "train", built)
    unnamed = SimpleNamespace(name="unnamed", with_fields=lambda _: [{}, {"subject_id": ""}])
    options = data_options({**config, "distinct": "patient"})
    encoder = TextEncoder(options.text, tokenizer)
    pools = order.make_pools(source, None, options)
    with pytest.raises(UserError, match=r"distinct='patient' needs patient ids, and unnamed"):
        order.index_batches(unnamed, pools, options, encoder, 0, samplers.IMAGE_ORDER)


def test_another_rule_of_distinctness_is_another_run(config, tokenizer) -> None:
    plain = pipeline.train_iterator(config, tokenizer, seed=0)
    distinct = pipeline.train_iterator({**config, "distinct": "patient"}, tokenizer, seed=0)
    for state, iterator in ((plain, distinct), (distinct, plain)):
        with pytest.raises(UserError, match=r"distinct"):
            iterator.set_state(state.get_state())
