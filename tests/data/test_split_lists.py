"""Without these, two sites could believe that they trained and tested on the same patients."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from medvlp_jax.data import check
from medvlp_jax.data.paths import dataset_folder
from medvlp_jax.data.source import open_source
from medvlp_jax.data.split_lists import (
    compare_split_lists,
    read_split_lists,
    split_hash,
    write_split_lists,
)
from medvlp_jax.errors import UserError

PAIRS = [("train", "b"), ("test", "c"), ("train", "a")]


def test_lists_are_sorted_and_their_hash_can_be_made_by_hand(tmp_path) -> None:
    write_split_lists(tmp_path, PAIRS, version="3")
    assert (tmp_path / "splits" / "train.txt").read_text() == "a\nb\n"
    assert (tmp_path / "splits" / "test.txt").read_text() == "c\n"
    lists = read_split_lists(tmp_path)
    assert lists is not None
    assert (lists.version, lists.counts) == ("3", {"train": 2, "test": 1})
    assert lists.hash == hashlib.sha256(b"test\tc\ntrain\ta\ntrain\tb").hexdigest()
    assert lists.hashes["train"] == hashlib.sha256(b"train\ta\ntrain\tb").hexdigest()


def test_another_order_gives_the_same_files_and_another_split_does_not(tmp_path) -> None:
    texts = []
    for name, pairs in (
        ("a", PAIRS),
        ("b", reversed(PAIRS)),
        ("c", [*PAIRS[:2], ("test", "a")]),
    ):
        (tmp_path / name).mkdir()
        write_split_lists(tmp_path / name, pairs, version="1")
        texts.append((tmp_path / name / "splits" / "splits.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["hash"] != json.loads(texts[2])["hash"]


def test_changed_and_damaged_lists(tmp_path) -> None:
    expected = split_hash(PAIRS)
    assert compare_split_lists(tmp_path, expected) == ("", [])
    write_split_lists(tmp_path, PAIRS, version="1")
    assert compare_split_lists(tmp_path, expected) == (f"split hash {expected} (rule 1)", [])
    _, problems = compare_split_lists(tmp_path, "0" * 64)  # lists of another build
    assert len(problems) == 1
    (tmp_path / "splits" / "test.txt").write_text("d\n")
    _, (problem,) = compare_split_lists(tmp_path, expected)
    assert "splits are not those of this dataset" in problem
    (tmp_path / "splits" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        compare_split_lists(tmp_path, expected)
    (tmp_path / "splits" / "splits.json").write_text("{}")
    with pytest.raises(UserError, match=r"splits\.json is damaged"):
        read_split_lists(tmp_path)


def test_check_shows_the_hash_of_the_build(small, tmp_path) -> None:
    shutil.copytree(small, tmp_path / "copy")
    folder = dataset_folder("image_text_folder", tmp_path / "copy")
    source = open_source("image_text_folder", "train", tmp_path / "copy")
    recorded = source.metadata["split_hash"]
    lists = read_split_lists(folder)
    assert lists is not None
    assert lists.hash == recorded
    assert sum(lists.counts.values()) == 38
    report = check.check_dataset("image_text_folder", str(tmp_path / "copy"))
    assert f"split hash {recorded} (rule 1)" in str(report)
    (folder / "splits" / "train.txt").write_text("00.png\n")
    report = check.check_dataset("image_text_folder", str(tmp_path / "copy"))
    assert any("are not those of this dataset" in problem for problem in report.problems)
