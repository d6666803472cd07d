"""Without these, a tokenizer could differ from the one of the checkpoint, or from Hugging Face's."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from medvlp_jax.data import text
from medvlp_jax.errors import UserError

CORPUS = ["the lung is clear", "the lungs are clear", "no lung nodule", "lower lobe nodules"] * 3


def test_bert_vocabulary_by_hand(data_dir) -> None:
    tokenizer = text.load_tokenizer(data_dir / "vocab/bert_base_uncased_vocab.txt")
    assert text.vocab_size(tokenizer) == 30_522
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id) == (0, 101)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (102, 103)
    assert tokenizer.special_token_ids == (0, 100, 101, 102, 103)
    batch = text.encode(tokenizer, ["No PNEUMOTHORAX, é.", ""], 16)
    pieces = tokenizer.tokens(batch["input_ids"][0])
    assert pieces[:2] == ["[CLS]", "no"]
    assert "".join(p.removeprefix("##") for p in pieces[2:9]).startswith("pneumothorax")
    words = batch["word_ids"][0].tolist()
    end = pieces.index("[SEP]")
    # no=0, pneumothorax=1 in several pieces, comma=2, e=3, full stop=4
    assert words[0] == words[end] == -1
    assert words[1] == 0
    assert set(words[2 : pieces.index(",")]) == {1}
    assert words[pieces.index(",") : end] == [2, 3, 4]
    assert words[end:] == [-1] * (16 - end)
    assert batch["attention_mask"][0].sum() == end + 1
    assert tokenizer.tokens(batch["input_ids"][1])[:3] == ["[CLS]", "[SEP]", "[PAD]"]
    assert all(v.dtype == np.int32 and v.shape == (2, 16) for v in batch.values())


def test_truncation_keeps_the_closing_token_and_touches_no_shared_setting(data_dir) -> None:
    tokenizer = text.load_tokenizer(data_dir / "vocab/pubmedbert_vocab.txt")
    long = "effusion " * 50
    for length in (8, 5, 100):
        batch = text.encode(tokenizer, [long, "short"], length)
        last = batch["input_ids"][0, batch["attention_mask"][0].sum() - 1]
        assert last == tokenizer.sep_token_id
        assert batch["input_ids"].shape == (2, length)
    assert tokenizer.backend.truncation is None


def test_trained_vocabulary_is_deterministic_across_processes_and_order(root) -> None:
    tokenizer = text.train_wordpiece(CORPUS, 60)
    shuffled = list(CORPUS)
    random.Random(0).shuffle(shuffled)
    assert text.train_wordpiece(shuffled, 60).backend.get_vocab() == tokenizer.backend.get_vocab()
    code = (
        "import json; from medvlp_jax.data import text;"
        f"print(json.dumps(text.train_wordpiece({CORPUS!r}, 60).backend.get_vocab(), sort_keys=True))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert json.loads(other.stdout) == tokenizer.backend.get_vocab()


def test_trained_vocabulary_merges_the_most_frequent_pairs() -> None:
    tokenizer = text.train_wordpiece(["aab aab aab ac"], 100)
    vocab = tokenizer.backend.get_vocab()
    assert [vocab[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    # characters, then ##a+##b (3, before a+##a by order of the pieces), aab, ac
    assert sorted(set(vocab) - set(text.BERT_SPECIAL.values()), key=vocab.__getitem__) == [
        "##a", "##b", "##c", "a", "##ab", "aab", "ac",
    ]  # fmt: skip
    assert tokenizer.tokens(text.encode(tokenizer, ["AAB aaz"], 6)["input_ids"][0]) == [
        "[CLS]", "aab", "[UNK]", "[SEP]", "[PAD]", "[PAD]",
    ]  # fmt: skip


def test_trained_vocabulary_covers_real_reports(data_dir) -> None:
    lines = (data_dir / "openi_reports/reports.jsonl").read_text("utf-8").splitlines()
    texts = [text.clean_text(json.loads(line)["findings"]) for line in lines]
    tokenizer = text.train_wordpiece(texts, 2000)
    assert len(tokenizer) == 2000
    batch = text.encode(tokenizer, texts[:300], 128)
    unknown = (batch["input_ids"] == tokenizer.token_id("unk_token")).sum()
    assert unknown == 0
    per_word = batch["attention_mask"].sum() / sum(len(t.split()) for t in texts[:300])
    assert per_word < 1.6


def test_vocabulary_size_limits() -> None:
    with pytest.raises(UserError, match="hold no words"):
        text.train_wordpiece(["", " "], 100)
    with pytest.raises(UserError, match=r"vocab_size=8 is too small.*at least"):
        text.train_wordpiece(CORPUS, 8)


def test_saved_folder_loads_here_and_in_transformers(tmp_path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    tokenizer = text.train_wordpiece(CORPUS, 60)
    tokenizer.save_pretrained(tmp_path, max_length=12)
    lines = ["The lungs are clear.", "unseen wörds"]
    expected = text.encode(tokenizer, lines, 12)
    again = text.load_tokenizer(tmp_path)
    assert again.special == tokenizer.special
    for key, value in text.encode(again, lines, 12).items():
        np.testing.assert_array_equal(value, expected[key])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    batch = theirs(lines, padding="max_length", truncation=True, max_length=12)
    np.testing.assert_array_equal(batch["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(batch["attention_mask"], expected["attention_mask"])
    assert theirs.mask_token_id == tokenizer.mask_token_id
    assert theirs.model_max_length == 12


def test_cased_vocabulary_is_recognised(tmp_path) -> None:
    pieces = [*text.BERT_SPECIAL.values(), "Lung", "lung"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = text.load_tokenizer(tmp_path)
    assert tokenizer.tokens(text.encode(tokenizer, ["Lung lung"], 4)["input_ids"][0])[1:3] == [
        "Lung", "lung",
    ]  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = text.load_tokenizer(tmp_path)
    assert tokenizer.tokens(text.encode(tokenizer, ["Lung"], 3)["input_ids"][0])[1] == "lung"


def test_roberta_files(tmp_path) -> None:
    vocab = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        "l",
        "u",
        "n",
        "g",
        "Ġ",
        "lu",
        "lun",
        "lung",
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl u\nlu n\nlun g\n")
    tokenizer = text.load_tokenizer(tmp_path)
    batch = text.encode(tokenizer, ["lung gun"], 8)
    assert tokenizer.tokens(batch["input_ids"][0]) == [
        "<s>", "lung", "Ġ", "g", "u", "n", "</s>", "<pad>",
    ]  # fmt: skip
    assert batch["word_ids"][0].tolist() == [-1, 0, 1, 1, 1, 1, -1, -1]
    assert tokenizer.mask_token_id == 4
    assert tokenizer.pad_token_id == 1


def test_tokenizers_without_a_mask_say_so(tmp_path) -> None:
    vocab = {"<s>": 0, "</s>": 1, "a": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = text.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="has no mask_token"):
        tokenizer.mask_token_id  # noqa: B018


def test_wrong_sources_are_explained(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        text.load_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"holds no tokenizer \(found nothing"):
        text.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(UserError, match=r"lacks \[PAD\]"):
        text.load_tokenizer(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        text.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        text.load_tokenizer(tmp_path)


def test_unknown_hub_name_offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nor available from the Hugging Face hub"):
        text.load_tokenizer("no-such-organisation/no-such-model")
