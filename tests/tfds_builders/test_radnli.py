"""Without it RadNLI's two files could be read as each other, or with MedNLI's names of keys."""

from __future__ import annotations

import json
import pathlib

import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    folder = tmp_path / "radnli"
    folder.mkdir()
    for name, count in (("dev", 2), ("test", 1)):
        lines = [
            json.dumps(
                {
                    "pair_id": str(i),
                    "sentence1": f"Invented {name} premise {i}.",
                    "sentence2": f"Invented {name} hypothesis {i}.",
                    "gold_label": "contradiction" if i else "neutral",
                }
            )
            for i in range(count)
        ]
        (folder / f"radnli_{name}_v1.jsonl").write_text("\n".join(lines))
    return folder


def test_pairs_of_both_files(folder, built, tmp_path, capsys) -> None:
    found = built("radnli", folder)
    assert {split: len(rows) for split, rows in found.items()} == {"validation": 2, "test": 1}
    example = found["validation"]["validation/1"]
    assert (example["text"], example["text_2"]) == (
        "Invented dev premise 1.",
        "Invented dev hypothesis 1.",
    )
    assert example["label"].tolist() == [0, 0, 1]
    assert found["test"]["test/0"]["text"] == "Invented test premise 0."
    assert "validation: entailment 0, neutral 1, contradiction 1" in capsys.readouterr().out
    report = check.check_dataset("radnli", str(tmp_path / "out"))
    assert report.problems == (
        "validation has 2 examples, published: 480",
        "test has 1 examples, published: 480",
    )


def test_errors_name_the_file(folder, built) -> None:
    (folder / "radnli_dev_v1.jsonl").write_text('{"pairID": "1"}\n')
    with pytest.raises(UserError, match=r"radnli_dev_v1\.jsonl line 1 has no pair_id, sentence1"):
        built("radnli", folder)
    (folder / "radnli_dev_v1.jsonl").unlink()
    with pytest.raises(UserError, match=r"missing radnli_dev_v1\.jsonl .*physionet"):
        built("radnli", folder)
