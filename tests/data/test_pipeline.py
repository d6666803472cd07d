"""Without these, a resumed or multi-host run could silently train on other data than it should."""

from __future__ import annotations

import json

import grain
import numpy as np
import pytest

from medvlp_jax.data import options, order, pipeline, reports, rows, samplers, transforms
from medvlp_jax.data import text as text_lib
from medvlp_jax.data.row_texts import TextEncoder
from medvlp_jax.errors import UserError

DATASET = "synthetic_cxr/tiny"
# Fixed parts of the splits: a change of the corpus changes no number below.
TRAIN, VALIDATION = 63, 13
TRAIN_SPLIT, VALIDATION_SPLIT = f"train[:{TRAIN}]", f"validation[:{VALIDATION}]"
LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer(built) -> text_lib.Tokenizer:
    return pipeline.config_tokenizer(config(built))


@pytest.fixture(scope="module")
def examples(built) -> list[dict]:
    return list(pipeline.open_source(DATASET, TRAIN_SPLIT, built))


def config(built, **changes) -> dict:
    """A small config; `image` and `text` are merged into the defaults."""
    image = {"size": 32, "channels": 1, "mean": (0.5,), "std": (0.25,), **changes.pop("image", {})}
    text = {"vocab_size": 400, "max_length": LENGTH, **changes.pop("text", {})}
    chosen = dict(dataset=DATASET, data_dir=str(built), train_split=TRAIN_SPLIT, threads=0)
    return {**chosen, "global_batch_size": 8, "image": image, "text": text, **changes}


AUGMENT = dict(crop="random_resized", rotate=10.0, brightness=0.2, blur=(0.0, 1.0), hflip=True)
RANDOM = dict(image=dict(augment=AUGMENT), text=dict(sample="sentence"))


# One entry per way of choosing what a batch holds; each has to keep the promises of the pipeline.
SMALL = "image_text_folder/small"
WAYS: dict[str, dict] = {
    "plain": {},
    "unpaired": {"pairing": "unpaired"},
    "balanced": {"label_balance": True},
    "distinct": {"distinct": "patient_text"},
    "distinct balanced": {"distinct": "patient", "label_balance": True},
    "mixture": {"mixture": {DATASET: 0.7, SMALL: 0.3}, "train_split": "train"},
    "everything": {
        "mixture": {DATASET: 0.7, SMALL: 0.3},
        "train_split": "train",
        "distinct": "patient",
        "label_balance": True,
        "pairing": "unpaired",
        "image": {"views": 2, "prior": True},
        "text": {"per_image": 2},
    },
    "studies": {"image": {"per_study": 2, "views": 2}},
    "prior": {"image": {"prior": True}},
    "texts": {"text": {"sample": "shuffle", "per_image": 3, "sentence_ids": True}},
}


def random_config(built, way: dict) -> dict:
    """A config in which everything that can be random is."""
    changes = {**way}
    image = {"augment": AUGMENT, **changes.pop("image", {})}
    text = {"sample": "sentence", **changes.pop("text", {})}
    return config(built, image=image, text=text, **changes)


def take(iterator, number: int) -> list[dict]:
    batches = [next(iterator) for _ in range(number)]
    iterator.close()
    return batches


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(parts: list[dict]) -> dict:
    return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


# --- sources ----------------------------------------------------------------------------------------


def test_source(built, examples) -> None:
    source = pipeline.open_source(DATASET, TRAIN_SPLIT, built)
    assert len(source) == len(examples) == TRAIN
    assert source.name == DATASET
    assert len(source.label_names) == 14
    assert source.metadata["patients"]["train"] > 10
    example = source[5]
    assert isinstance(example["text"], str)
    assert example["image"][:2] == b"\xff\xd8"
    assert example["label"].shape == (14,)
    assert all(isinstance(q, str) for q in example["qa"]["question"])
    assert [e["image_id"] for e in source.read([7, 2])] == [examples[i]["image_id"] for i in (7, 2)]
    for index in (TRAIN, -1):
        with pytest.raises(IndexError):
            source[index]


def test_source_options(built, examples) -> None:
    source = pipeline.open_source(
        DATASET, "train[:20]", built, fields=("text", "absent"), max_examples=6
    )
    assert len(source) == 6
    assert set(source[0]) == {"text"}
    assert source[3]["text"] == examples[3]["text"]


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        (DATASET, "trian", "no split 'trian'; it has test, train, validation"),
        (DATASET, "train[:oops]", "cannot be read"),
        ("synthetic_cxr/large", "train", "data build synthetic_cxr/large"),
        ("mimic_cxr", "train", "--manual-dir"),
    ],
)
def test_source_errors(built, dataset, split, message) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.open_source(dataset, split, built)


# --- training ---------------------------------------------------------------------------------------


def test_batch_holds_what_the_examples_hold(built, tokenizer, examples) -> None:
    batch = take(pipeline.train_iterator(config(built), tokenizer, seed=0), 1)[0]
    view = options.data_options(config(built)).image
    for row, index in enumerate(batch["example_index"]):
        example = examples[index]
        np.testing.assert_array_equal(
            batch["image"][row], transforms.eval_image(example["image"], view)
        )
        text = reports.clean_text(example["text"])
        encoded = text_lib.encode(tokenizer, [text], LENGTH)
        for key in ("input_ids", "attention_mask", "word_ids"):
            np.testing.assert_array_equal(batch[key][row], encoded[key][0], err_msg=key)
        known = example["label"] != -2
        np.testing.assert_array_equal(batch["label_mask"][row], known)
        np.testing.assert_array_equal(batch["label"][row][known], example["label"][known])
        assert (batch["label"][row][~known] == 0).all()
        assert batch["subject_id"][row] == reports.stable_id(example["subject_id"])
        assert batch["study_id"][row] == reports.stable_id(example["study_id"])
        assert batch["text_id"][row] == reports.stable_id(reports.normalise_for_id(text))
    np.testing.assert_array_equal(batch["label"], batch["text_label"])
    np.testing.assert_array_equal(batch["label_mask"], batch["text_label_mask"])
    assert batch["example_mask"].all()


def test_shapes_and_types(built, tokenizer) -> None:
    batch = take(pipeline.train_iterator(config(built), tokenizer, seed=0), 1)[0]
    kinds = {"image": np.uint8, "label": np.float32, "label_mask": np.float32}
    kinds |= {"text_label": np.float32, "text_label_mask": np.float32, "example_mask": np.float32}
    shapes = {"image": (8, 32, 32, 1)}
    shapes |= dict.fromkeys(("input_ids", "attention_mask", "word_ids"), (8, LENGTH))
    shapes |= dict.fromkeys(("label", "label_mask", "text_label", "text_label_mask"), (8, 14))
    for key, value in batch.items():
        assert value.shape == shapes.get(key, (8,)), key
        assert value.dtype == kinds.get(key, np.int32), key


def test_same_seed_same_batches_and_another_seed_another_order(built, tokenizer) -> None:
    batches = [
        take(pipeline.train_iterator(config(built, **RANDOM), tokenizer, seed=s), 10)
        for s in (3, 3, 4)
    ]
    assert_same(batches[0], batches[1])
    orders = [np.concatenate([b["example_index"] for b in run]) for run in batches]
    assert not (orders[0] == orders[2]).all()


def test_each_epoch_is_a_new_permutation(built, tokenizer) -> None:
    iterator = pipeline.train_iterator(config(built, global_batch_size=9), tokenizer, seed=0)
    assert iterator.steps_per_epoch == 7
    batches = take(iterator, 21)
    orders = np.stack([b["example_index"] for b in batches]).reshape(3, TRAIN)
    assert (np.sort(orders) == np.arange(TRAIN)).all()
    assert len({tuple(order) for order in orders}) == 3
    # The epochs of another seed are none of these, one epoch apart or not.
    other = take(pipeline.train_iterator(config(built, global_batch_size=9), tokenizer, seed=1), 14)
    others = np.stack([b["example_index"] for b in other]).reshape(2, TRAIN)
    assert not {tuple(o) for o in orders} & {tuple(o) for o in others}


def test_without_a_whole_number_of_batches_no_example_repeats_in_an_epoch(built, tokenizer) -> None:
    iterator = pipeline.train_iterator(config(built, global_batch_size=10), tokenizer, seed=0)
    assert (iterator.steps_per_epoch, iterator.num_examples) == (6, TRAIN)
    orders = np.stack([b["example_index"] for b in take(iterator, 12)]).reshape(2, 60)
    assert [len(set(order)) for order in orders] == [60, 60]
    assert set(orders[0]) != set(orders[1])  # not always the same examples are left out


@pytest.mark.parametrize("way", [*WAYS, "threads"])
def test_resume_is_exact(built, tokenizer, way) -> None:
    chosen = random_config(built, WAYS.get(way, {"threads": 2, "prefetch": 3}))
    straight = pipeline.train_iterator(chosen, tokenizer, seed=5)
    before = [next(straight) for _ in range(5)]
    state = json.loads(json.dumps(straight.get_state()))
    after = take(straight, 6)
    assert state["step"] == 5
    resumed = pipeline.train_iterator(chosen, tokenizer, seed=5)
    next(resumed)
    resumed.set_state(state)
    assert_same(take(resumed, 6), after)
    resumed.set_state({**state, "step": 0})
    assert_same(take(resumed, 5), before)


def test_threads_do_not_change_the_batches(built, tokenizer) -> None:
    plain = take(pipeline.train_iterator(config(built, **RANDOM), tokenizer, seed=5), 12)
    chosen = config(built, **RANDOM, threads=3)
    assert_same(plain, take(pipeline.train_iterator(chosen, tokenizer, seed=5), 12))


@pytest.mark.parametrize("way", ["plain", "everything"])
def test_worker_processes_give_the_same_batches_and_resume(built, tokenizer, way) -> None:
    chosen = random_config(built, WAYS[way])
    plain = take(pipeline.train_iterator(chosen, tokenizer, seed=5), 6)
    working = pipeline.train_iterator({**chosen, "workers": 2}, tokenizer, seed=5)
    working.set_state({**working.get_state(), "step": 2})
    batches = [next(working) for _ in range(4)]
    state = working.get_state()
    working.close()
    assert_same(batches, plain[2:])
    assert state["step"] == 6


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_batch_of_one(built, tokenizer, way) -> None:
    chosen = random_config(built, WAYS[way])
    one = take(pipeline.train_iterator(chosen, tokenizer, seed=2), 9)
    two = [take(pipeline.train_iterator(chosen, tokenizer, 2, p, 2), 9) for p in (0, 1)]
    assert two[0][0]["image"].shape[0] == 4
    assert_same(one, [joined(list(parts)) for parts in zip(*two, strict=True)])


def test_state_moves_to_another_number_of_processes(built, tokenizer) -> None:
    one = pipeline.train_iterator(config(built), tokenizer, seed=2)
    for _ in range(3):
        next(one)
    other = pipeline.train_iterator(config(built), tokenizer, 2, 1, 2)
    other.set_state(one.get_state())
    second_half = {key: value[4:] for key, value in take(one, 1)[0].items()}
    assert_same(take(other, 1), [second_half])


@pytest.mark.parametrize(
    "changes", [{"seed": 9}, {"global_batch_size": 4}, {"num_examples": 1}, {"dataset": "other"}]
)
def test_state_of_another_run_is_refused(built, tokenizer, changes) -> None:
    iterator = pipeline.train_iterator(config(built), tokenizer, seed=0)
    with pytest.raises(UserError, match=next(iter(changes))):
        iterator.set_state({**iterator.get_state(), **changes})


def test_unpaired_texts_come_from_another_order(built, tokenizer, examples) -> None:
    chosen = config(built, pairing="unpaired", global_batch_size=9)
    batches = take(pipeline.train_iterator(chosen, tokenizer, seed=0), 7)
    by_text: dict[int, list] = {}
    for example in examples:
        key = reports.stable_id(reports.normalise_for_id(reports.clean_text(example["text"])))
        by_text.setdefault(key, []).append(example["label"])
    own = 0
    for batch in batches:
        for row, index in enumerate(batch["example_index"]):
            known = batch["text_label_mask"][row] > 0
            assert any(
                ((label != -2) == known).all()
                and (label[known] == batch["text_label"][row][known]).all()
                for label in by_text[int(batch["text_id"][row])]
            )
            text = reports.clean_text(examples[index]["text"])
            own += batch["text_id"][row] == reports.stable_id(reports.normalise_for_id(text))
            known = examples[index]["label"] != -2
            assert (batch["label"][row][known] == examples[index]["label"][known]).all()
    assert own < 20
    # Every text occurs once per epoch too.
    texts = np.concatenate([b["text_id"] for b in batches])
    assert {int(t): int((texts == t).sum()) for t in texts} == {
        k: len(v) for k, v in by_text.items()
    }


def test_max_examples(built, tokenizer) -> None:
    chosen = config(built, max_examples=10)
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    assert iterator.num_examples == 10
    assert max(b["example_index"].max() for b in take(iterator, 6)) <= 9
    assert pipeline.eval_batches(chosen, tokenizer, "validation").num_examples == 10


def test_label_balance_gives_every_group_the_same_share() -> None:
    # 60 examples; the first label is positive in two of them, the second in 30 others.
    labels = np.zeros((60, 2), np.int8)
    labels[:2, 0], labels[2:32, 1], labels[40] = 1, 1, (-1, -2)
    draw = samplers.Balanced(labels, samplers.order_seed(0, 0), 0)
    epochs = np.array([draw(i, None) for i in range(300)]).reshape(5, 60)
    for epoch in epochs:
        # Three groups (no positive label is one): 20 of 60 draws each.
        assert [((epoch >= a) & (epoch < b)).sum() for a, b in ((0, 2), (2, 32), (32, 60))] == [
            pytest.approx(20, abs=1)
        ] * 3
    assert len({tuple(e) for e in epochs}) == 5
    # Systematic sampling: the occurrences of an example differ by at most one between epochs.
    counts = np.stack([np.bincount(e, minlength=60) for e in epochs])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert draw(7, None) == epochs[0][7]


def test_label_balance_through_the_iterator(built, tokenizer, examples) -> None:
    chosen = config(built, label_balance=True, global_batch_size=21)
    batches = take(pipeline.train_iterator(chosen, tokenizer, seed=0), 9)
    drawn = np.concatenate([b["example_index"] for b in batches])
    labels = np.stack([e["label"] for e in examples]) == 1
    present = np.flatnonzero(labels.any(axis=0))
    rarest = present[labels[:, present].sum(axis=0).argmin()]
    assert labels[drawn, rarest].mean() > 0.9 / (len(present) + 1)


@pytest.mark.parametrize("sample", ["report", "findings", "impression", "section", "sentence"])
def test_text_sampling(built, tokenizer, examples, sample) -> None:
    chosen = config(built, text=dict(sample=sample, max_length=200))
    run = take(pipeline.train_iterator(chosen, tokenizer, seed=0), 24)
    seen = set()
    for batch in run:
        for row, index in enumerate(batch["example_index"]):
            example = examples[index]
            parts = {k: reports.clean_text(example[k]) for k in ("text", "findings", "impression")}
            sections = [parts[k] for k in ("findings", "impression") if parts[k]]
            allowed = {
                "report": [parts["text"]],
                "findings": [parts["findings"] or parts["text"]],
                "impression": [parts["impression"] or parts["text"]],
                "section": sections,
                "sentence": [s for part in sections for s in reports.split_sentences(part)],
            }[sample]
            ids = {reports.stable_id(reports.normalise_for_id(t)): t for t in allowed}
            found = int(batch["text_id"][row])
            assert found in ids
            expected = text_lib.encode(tokenizer, [ids[found]], 200)["input_ids"][0]
            np.testing.assert_array_equal(batch["input_ids"][row], expected)
            seen.add((int(index), found))
    if sample in ("section", "sentence"):
        assert len(seen) > TRAIN  # not always the same part


def test_sentences_are_a_random_subset_in_order(tokenizer) -> None:
    encoder = TextEncoder(options.TextOptions(sample="sentences"), tokenizer)
    all_of_them = ["First here.", "Second there.", "Third gone."]
    text = " ".join(all_of_them)
    seen = {encoder.choose({"text": text}, np.random.default_rng(i))[0] for i in range(80)}
    subsets = {
        " ".join(s for k, s in enumerate(all_of_them) if mask >> k & 1) for mask in range(1, 8)
    }
    assert seen == subsets
    assert encoder.choose({"text": text}, None) == [text]  # evaluation reads everything
    assert encoder.choose({"text": ""}, np.random.default_rng(0)) == [""]


def test_row_without_a_section_gives_its_report(tokenizer) -> None:
    encoder = TextEncoder(options.TextOptions(sample="impression"), tokenizer)
    rng = np.random.default_rng(0)
    assert encoder.choose({"text": "Clear lungs."}, rng) == ["Clear lungs."]
    text = "FINDINGS: a XXXX b. IMPRESSION: normal."
    assert encoder.choose({"text": text}, rng) == ["normal."]
    assert encoder.choose({}, rng) == [""]


def test_equal_texts_have_equal_ids(tokenizer) -> None:
    encoder = TextEncoder(options.TextOptions(), tokenizer)
    first = encoder.encode(["No effusion.", "no  effusion", "Effusion."])["text_id"]
    again = encoder.encode(["Effusion.", "No effusion."])["text_id"]
    assert first[0] == first[1] == again[1]
    assert first[2] == again[0] != first[0]


def test_rows_without_ids_share_none(tokenizer) -> None:
    examples = [{"subject_id": ""}, {}, {"subject_id": "p"}, {"subject_id": "p"}]
    ids = rows.id_hashes(examples, np.arange(4), "subject_id")
    assert ids[2] == ids[3]
    assert len(set(ids.tolist())) == 3


def test_missing_and_uncertain_labels() -> None:
    label, mask = rows.label_arrays([{"label": np.array([1, 0, -1, -2], np.int8)}, {}], 4)
    np.testing.assert_array_equal(label, [[1, 0, -1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [0, 0, 0, 0]])


# --- evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_two_processes_evaluate_every_example_once(built, tokenizer, batch_size) -> None:
    chosen = config(built, global_batch_size=batch_size, **RANDOM)
    parts = [pipeline.eval_batches(chosen, tokenizer, VALIDATION_SPLIT, p, 2) for p in (0, 1)]
    runs = [list(part) for part in parts]
    assert (
        len(parts[0])
        == len(parts[1])
        == len(runs[0])
        == len(runs[1])
        == -(-VALIDATION // batch_size)
    )
    assert parts[0].num_examples == VALIDATION
    batches = [b for run in runs for b in run]
    assert {b["image"].shape[0] for b in batches} == {batch_size // 2}
    index = np.concatenate([b["example_index"] for b in batches])
    mask = np.concatenate([b["example_mask"] for b in batches])
    assert sorted(index[mask == 1]) == list(range(VALIDATION))
    assert (index[mask == 0] == -1).all()
    # Padding rows repeat a real example: no empty image, no empty text.
    assert all((b["attention_mask"].sum(axis=1) > 0).all() for b in batches)
    assert all((b["image"].max(axis=(1, 2, 3)) > 0).all() for b in batches)
    one = list(pipeline.eval_batches(chosen, tokenizer, VALIDATION_SPLIT))
    assert_same(one, [joined(list(p)) for p in zip(*runs, strict=True)])


def test_evaluation_is_fixed_and_reads_whole_reports(built, tokenizer) -> None:
    chosen = config(built, **RANDOM, threads=2)
    batches = pipeline.eval_batches(chosen, tokenizer, VALIDATION_SPLIT)
    first = list(batches)
    assert_same(first, list(batches))
    example = batches.source[0]
    text = reports.clean_text(example["text"])
    assert first[0]["text_id"][0] == reports.stable_id(reports.normalise_for_id(text))
    view = options.data_options(chosen).image
    np.testing.assert_array_equal(
        first[0]["image"][0], transforms.eval_image(example["image"], view)
    )


def test_evaluation_may_stop_early(built, tokenizer) -> None:
    batches = pipeline.eval_batches(config(built, threads=2), tokenizer, "test")
    for _ in batches:
        break
    assert sum(int(b["example_mask"].sum()) for b in batches) == batches.num_examples


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({"global_batch_size": 64}, 1, "63 examples.*global_batch_size to 63"),
        ({"global_batch_size": 8, "max_examples": 5}, 1, "5 examples"),
        ({"global_batch_size": 7}, 2, "does not divide by 2 processes; use 6 or 8"),
        ({"global_batch_size": 1}, 2, "use 2 or 2"),
        ({"train_split": "training"}, 1, "no split 'training'"),
        ({"dataset": "synthetic_cxr/none"}, 1, "not built"),
        ({"text_dataset": "x"}, 1, "pairing"),
    ],
)
def test_training_errors(built, tokenizer, changes, processes, message) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.train_iterator(config(built, **changes), tokenizer, 0, 0, processes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batchsize": 4},
            "data.global_batchsize is unknown; did you mean global_batch_size",
        ),
        ({"image": {"sise": 4}}, r"data\.image\.sise is unknown; did you mean size"),
        ({"image": {"augment": {"hflop": 1}}}, r"data\.image\.augment\.hflop .* hflip"),
        ({"text": {"max_len": 4}}, r"did you mean max_length"),
        ({"pairing": "both"}, "expected one of paired, unpaired"),
        (
            {"text": {"sample": "words"}},
            "report, findings, impression, section, sentence, sentences",
        ),
        ({"image": {"channels": 2}}, "1 .grey. or 3"),
        ({"image": {"size": 64, "resize": 32}}, "at least size"),
        ({"image": {"mean": (1, 2)}}, "one value per channel"),
        ({"image": {"std": (0.0,)}}, "positive"),
        ({"text": {"max_length": 2}}, "at least 3"),
        ({"global_batch_size": 0}, "positive"),
        ({"image": {"augment": {"crop_scale": (0.0, 1.0)}}}, "within"),
    ],
)
def test_option_errors(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        options.data_options(changes)


def test_options_have_defaults_and_pass_through() -> None:
    chosen = options.data_options({"image": {"mean": [0.5, 0.5, 0.5]}})
    assert chosen.image.mean == (0.5, 0.5, 0.5)
    assert chosen.image.augment == options.AugmentOptions()
    assert options.data_options(chosen) is chosen


def test_shuffles_of_two_streams_differ() -> None:
    orders = [
        np.concatenate([order._shuffled(40, 8, samplers.order_seed(0, s))[i] for i in range(5)])
        for s in (samplers.IMAGE_ORDER, samplers.TEXT_ORDER)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert (orders[0] != orders[1]).any()
    assert isinstance(order._shuffled(40, 8, 0), grain.MapDataset)
