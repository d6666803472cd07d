"""Without these, sentence-level objectives would pool tokens over the wrong sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvlp_jax.data import text as text_lib
from medvlp_jax.data.offsets import sentence_ids, sentence_offsets, text_offsets
from medvlp_jax.data.reports import split_sentences

TEXTS = [
    "No effusion. Heart size\n is normal.",
    "1. Normal heart. 2. No effusion.",
    "A nodule of 2.5 cm is seen! Stable?",
    "Größe é normal. Clear",
    "",
    "12.",
    "FINDINGS:\n\n- one\n- two",
]


@pytest.fixture(scope="module")
def tokenizer() -> text_lib.Tokenizer:
    return text_lib.train_wordpiece(TEXTS * 3, 80)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> text_lib.Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    letters = sorted({c for t in TEXTS for c in t if c.isascii() and c.isprintable() and c != " "})
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "Ċ", *letters, "no"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\nn o\n")
    return text_lib.load_tokenizer(folder)


def test_by_hand(tokenizer: text_lib.Tokenizer) -> None:
    text = "1. No effusion. 2. Stable."
    found = text_offsets(tokenizer, text)
    assert [text[a:b] for a, b in found.sentences] == ["No effusion.", "Stable."]
    words = [text[a:b] for a, b in found.words]
    assert words == ["1", ".", "No", "effusion", ".", "2", ".", "Stable", "."]
    # list numbers count to the sentence that they introduce
    assert found.word_sentence.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_cut_out_the_sentences(text: str) -> None:
    spans = sentence_offsets(text)
    assert spans.dtype == np.int32
    assert [" ".join(text[a:b].split()) for a, b in spans] == split_sentences(text)
    assert (spans[1:, 0] >= spans[:-1, 1]).all()


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
def test_ids_are_aligned_with_the_tokens(kind: str, request) -> None:
    chosen = request.getfixturevalue(kind)
    for length in (6, 64):
        batch = text_lib.encode(chosen, TEXTS, length)
        ids = sentence_ids(chosen, TEXTS, length)
        assert ids.shape == (len(TEXTS), length)
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids >= 0, batch["word_ids"] >= 0)
        for row, text in enumerate(TEXTS):
            found = text_offsets(chosen, text)
            real = batch["word_ids"][row] >= 0
            expected = found.word_sentence[batch["word_ids"][row][real]]
            np.testing.assert_array_equal(ids[row][real], expected)
            assert (np.diff(ids[row][real]) >= 0).all()


def test_a_text_without_a_sentence_is_one(tokenizer: text_lib.Tokenizer) -> None:
    ids = sentence_ids(tokenizer, ["12.", ""], 6)
    assert set(ids[0].tolist()) == {-1, 0}
    assert set(ids[1].tolist()) == {-1}
    assert sentence_ids(tokenizer, [], 6).shape == (0, 6)


def test_real_reports(data_dir) -> None:
    lines = (data_dir / "openi_reports/reports.jsonl").read_text("utf-8").splitlines()
    texts = [text_lib.clean_text(json.loads(line)["findings"]) for line in lines]
    tokenizer = text_lib.load_tokenizer(data_dir / "vocab/bert_base_uncased_vocab.txt")
    for text in texts:
        spans = sentence_offsets(text)
        assert [" ".join(text[a:b].split()) for a, b in spans] == split_sentences(text)
    ids = sentence_ids(tokenizer, texts[:200], 512)
    counts = [max(len(split_sentences(text)), 1) if text else 0 for text in texts[:200]]
    assert (ids.max(axis=1) + 1).tolist() == counts
    # every sentence has a token of its own
    for row, count in zip(ids, counts, strict=True):
        assert set(row.tolist()) - {-1} == set(range(count))
