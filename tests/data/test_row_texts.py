"""Without these, a row could get a text that is not of its report, or a text twice."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from medvlp_jax.data import pipeline, reports, text
from medvlp_jax.data.offsets import sentence_ids
from medvlp_jax.data.options import TextOptions
from medvlp_jax.data.row_texts import TextEncoder
from medvlp_jax.errors import UserError

SENTENCES = ["First here.", "Second there.", "Third gone."]
REPORT = {"text": " ".join(SENTENCES)}
SECTIONS = {"text": "x", "findings": "No effusion.", "impression": "Normal."}


def drawn(tokenizer, example: dict, **options) -> list[list[str]]:
    """What 80 rows with this example get."""
    encoder = TextEncoder(TextOptions(**options), tokenizer)
    return [encoder.choose(example, np.random.default_rng(seed)) for seed in range(80)]


def test_shuffled_sentences(tokenizer) -> None:
    seen = {row[0] for row in drawn(tokenizer, REPORT, sample="shuffle")}
    assert seen == {" ".join(order) for order in itertools.permutations(SENTENCES)}
    encoder = TextEncoder(TextOptions(sample="shuffle"), tokenizer)
    assert encoder.choose(REPORT, None) == [REPORT["text"]]
    assert encoder.choose({}, np.random.default_rng(0)) == [""]


def test_several_sentences_are_different_ones(tokenizer) -> None:
    rows = drawn(tokenizer, REPORT, sample="sentence", per_image=2)
    assert {tuple(row) for row in rows} == set(itertools.permutations(SENTENCES, 2))
    (row,) = {tuple(sorted(r)) for r in drawn(tokenizer, REPORT, sample="sentence", per_image=5)}
    assert row == tuple(SENTENCES)
    repeated = {"text": "Clear. Clear. Clear. Normal."}
    rows = drawn(tokenizer, repeated, sample="sentence", per_image=3)
    assert {tuple(sorted(row)) for row in rows} == {("Clear.", "Normal.")}


@pytest.mark.parametrize(
    ("example", "options", "expected"),
    [
        (SECTIONS, {"sample": "section", "per_image": 2}, {("No effusion.", "Normal.")}),
        (SECTIONS, {"sample": "section", "per_image": 3}, {("No effusion.", "Normal.")}),
        (SECTIONS, {"sample": "section"}, {("No effusion.",), ("Normal.",)}),
        (SECTIONS, {"sample": "findings", "per_image": 2}, {("No effusion.",)}),
        (REPORT, {"sample": "report", "per_image": 2}, {(REPORT["text"],)}),
        ({"text": "One."}, {"sample": "shuffle", "per_image": 3}, {("One.",)}),
    ],
)
def test_sections_and_reports(tokenizer, example, options, expected) -> None:
    assert {tuple(row) for row in drawn(tokenizer, example, **options)} == expected


def test_random_texts_are_different_and_of_the_report(tokenizer) -> None:
    for sample in ("sentences", "shuffle"):
        for row in drawn(tokenizer, REPORT, sample=sample, per_image=3):
            assert 1 <= len(row) == len(set(row)) <= 3
            assert all(set(reports.split_sentences(t)) <= set(SENTENCES) for t in row)


def test_arrays_of_several_texts(tokenizer) -> None:
    encoder = TextEncoder(TextOptions(per_image=2, max_length=12), tokenizer)
    batch = encoder.rows([["No effusion.", "Shade 3."], ["Grey number 4."]])
    assert batch["text_present"].tolist() == [[1, 1], [1, 0]]
    assert batch["text_present"].dtype == np.float32
    for row, texts in enumerate((["No effusion.", "Shade 3."], ["Grey number 4.", ""])):
        expected = text.encode(tokenizer, texts, 12)
        for key, value in expected.items():
            np.testing.assert_array_equal(batch[key][row], value, err_msg=key)
            assert batch[key].dtype == np.int32
        assert batch["text_id"][row].tolist() == [
            reports.stable_id(reports.normalise_for_id(t)) for t in texts
        ]
    # A text that is not there has its special tokens: attention over nothing would give NaN.
    assert batch["attention_mask"][1, 1].sum() == 2


def test_several_texts_through_the_iterator(config, tokenizer) -> None:
    chosen = {**config, "text": {**config["text"], "sample": "section", "per_image": 2}}
    source = pipeline.open_source("image_text_folder", "train", config["data_dir"])
    batch = next(pipeline.train_iterator(chosen, tokenizer, seed=0))
    assert batch["input_ids"].shape == batch["word_ids"].shape == (4, 2, 24)
    assert batch["text_id"].shape == (4, 2)
    for row, index in enumerate(batch["example_index"]):
        sections = reports.split_sections(reports.clean_text(source[int(index)]["text"]))
        texts = [sections["findings"], sections["impression"]]
        expected = text.encode(tokenizer, texts, 24)["input_ids"]
        np.testing.assert_array_equal(batch["input_ids"][row], expected)
    (first, *_) = pipeline.eval_batches(chosen, tokenizer, "test")
    assert first["input_ids"].shape == (4, 24)  # the report alone
    assert "text_present" not in first


def write_table(path, rows: dict[str, str], key: str) -> str:
    lines = [json.dumps({key: name, "second_text": text}) + "\n" for name, text in rows.items()]
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.parametrize("key", ["image_id", "study_id"])
@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_second_texts(built, config, tokenizer, tmp_path, key, pairing) -> None:
    examples = list(pipeline.open_source("synthetic_cxr/tiny", "train", built))
    ids = list(dict.fromkeys(example[key] for example in examples))
    second = {name: f"Shade ___ {number}." for number, name in enumerate(ids) if number % 2}
    file = write_table(tmp_path / "second.jsonl", second, key)
    chosen = {**config, "dataset": "synthetic_cxr/tiny", "pairing": pairing}
    chosen["text"] = {**config["text"], "second": file, "sample": "sentence"}
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    by_sentence: dict[int, set[str]] = {}
    for example in examples:
        parts = [reports.clean_text(example[part]) for part in ("findings", "impression")]
        for sentence in reports.split_sentences("\n\n".join(p for p in parts if p)):
            name = reports.stable_id(reports.normalise_for_id(sentence))
            by_sentence.setdefault(name, set()).add(example[key])
    repeated = 0
    for _ in range(12):
        batch = next(iterator)
        for row, index in enumerate(batch["example_index"]):
            owners = by_sentence[int(batch["text_id"][row])]
            if pairing == "paired":
                owners = {examples[index][key]}
            found = batch["input_ids_2"][row]
            own = [batch["input_ids"][row]] if owners - set(second) else []
            texts = [second[name].replace("___ ", "") for name in sorted(owners & set(second))]
            other = list(text.encode(tokenizer, texts, 24)["input_ids"])
            assert any((found == ids).all() for ids in [*own, *other])
            repeated += bool(own) and not other
            assert batch["attention_mask_2"][row].sum() == (found != 0).sum()
            assert batch["word_ids_2"].shape == (4, 24)
    assert 0 < repeated < 40
    assert "input_ids_2" not in next(iter(pipeline.eval_batches(chosen, tokenizer, "test")))


def test_the_other_section_as_second_text(tokenizer) -> None:
    options = TextOptions(sample="findings", second="impression", max_length=24)
    encoder = TextEncoder(options, tokenizer)
    stored = {"text": "unread", "findings": "Shade 3.", "impression": "No effusion ___."}
    written = {"text": "FINDINGS: Shade 3.\nIMPRESSION: No effusion."}
    lacking = {"text": "FINDINGS: Shade 3."}
    examples = [stored, written, lacking]
    texts = [encoder.choose(example, np.random.default_rng(0)) for example in examples]
    assert texts == [["Shade 3."]] * 3
    batch = encoder.second_rows(examples, texts)
    expected = text.encode(tokenizer, ["No effusion.", "No effusion.", "Shade 3."], 24)
    for key in ("input_ids", "attention_mask", "word_ids"):
        np.testing.assert_array_equal(batch[f"{key}_2"], expected[key])


def test_second_texts_of_other_examples(config, tokenizer, tmp_path) -> None:
    file = write_table(tmp_path / "second.jsonl", {"nobody": "Normal."}, "image_id")
    chosen = {**config, "text": {**config["text"], "second": file}}
    with pytest.raises(UserError, match=r"none of its ids is .*image_text_folder.*'nobody'"):
        pipeline.train_iterator(chosen, tokenizer, seed=0)


def test_sentences_of_tokens(config, tokenizer) -> None:
    options = TextOptions(sentence_ids=True, per_image=2, max_length=12)
    encoder = TextEncoder(options, tokenizer)
    texts = ["No effusion. Shade 3. Grey number 4.", "No effusion."]
    for _ in range(2):  # the second time from the memory
        batch = encoder.rows([texts, texts[1:]])
        expected = sentence_ids(tokenizer, [*texts, texts[1], ""], 12).reshape(2, 2, 12)
        np.testing.assert_array_equal(batch["sentence_ids"], expected)
        assert batch["sentence_ids"].dtype == np.int32
    assert batch["sentence_ids"].max() == 2
    chosen = {**config, "text": {**config["text"], "sentence_ids": True}}
    batch = next(pipeline.train_iterator(chosen, tokenizer, seed=0))
    assert batch["sentence_ids"].shape == (4, 24)
    assert ((batch["sentence_ids"] >= 0) == (batch["word_ids"] >= 0)).all()
