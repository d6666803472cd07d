"""Without it premise and hypothesis could be swapped, or a dataset without images could not be built."""

from __future__ import annotations

import json
import pathlib

import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

FILES = {
    "train": "mli_train_v1.jsonl",
    "validation": "mli_dev_v1.jsonl",
    "test": "mli_test_v1.jsonl",
}
LABELS = ("entailment", "neutral", "contradiction")


def pair(number: int, label: str) -> str:
    """One line with the keys of the published files."""
    entry = {
        "sentence1": f"Invented premise {number}\u2028with a separator.",
        "pairID": f"pair-{number}",
        "sentence1_parse": "(ROOT (S))",
        "sentence1_binary_parse": "( a b )",
        "sentence2": f"Invented hypothesis {number}.",
        "sentence2_parse": "(ROOT (S))",
        "sentence2_binary_parse": "( a b )",
        "gold_label": label,
    }
    return json.dumps(entry, ensure_ascii=False)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    folder = tmp_path / "mednli"
    folder.mkdir()
    for start, (split, name) in zip((0, 10, 20), FILES.items(), strict=True):
        lines = [pair(start + i, LABELS[i % 3]) for i in range(4 if split == "train" else 3)]
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def test_pairs_and_labels(folder, built, tmp_path, capsys) -> None:
    found = built("mednli", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 4, "validation": 3, "test": 3}
    example = found["train"]["train/pair-2"]
    assert example["text"] == "Invented premise 2 with a separator."
    assert example["text_2"] == "Invented hypothesis 2."
    assert example["label"].tolist() == [0, 0, 1]
    assert found["test"]["test/pair-20"]["label"].tolist() == [1, 0, 0]
    assert "image" not in example
    printed = capsys.readouterr().out
    assert "train: entailment 2, neutral 1, contradiction 1" in printed
    assert "(published: 11232)" in printed
    report = check.check_dataset("mednli", str(tmp_path / "out"))
    assert report.problems == (
        "train has 4 examples, published: 11232",
        "validation has 3 examples, published: 1395",
        "test has 3 examples, published: 1422",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"neutral"', '"-"', r"mli_dev_v1\.jsonl line 2: gold_label is '-', expected entailment"),
        ("Invented hypothesis 12.", "  ", r"mli_dev_v1\.jsonl line 3: a sentence is blank"),
        ('"sentence2"', '"second"', r"mli_dev_v1\.jsonl line 1 has no sentence2"),
        ("pair-12", "pair-11", "lists validation/pair-11 twice"),
        ('{"sentence1"', '{"sentence1', "line 1 is not JSON"),
    ],
)
def test_errors_name_the_line(folder, built, old, new, message) -> None:
    file = folder / FILES["validation"]
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(UserError, match=message):
        built("mednli", folder)


def test_wrong_folder(folder, built) -> None:
    (folder / FILES["test"]).unlink()
    with pytest.raises(UserError, match=r"missing mli_test_v1\.jsonl .*physionet"):
        built("mednli", folder)
