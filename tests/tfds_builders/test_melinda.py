"""Without it a MELINDA figure could get another row's caption or class."""

from __future__ import annotations

import pathlib

import pytest

from medvlp_jax.data import pipeline
from medvlp_jax.errors import UserError

PARTS = {"train.csv": range(1, 9), "dev.csv": range(9, 11), "test.csv": range(11, 13)}


def make_row(number: int) -> dict[str, object]:
    return {
        "figure_file": f"{1000 + number}_dummy_{number}.jpg",
        "caption": f'(A) Dummy blot, "number" {number}.',
        "i_meth": number % 11,
        "p_meth": f"MI:00{number % 4}",
        "i_meth_label": "genetic",
        "p_meth_label": "western blot" if number % 2 else "mass spectrometry",
    }


@pytest.fixture
def rows() -> dict[str, list[dict[str, object]]]:
    rows = {name: [make_row(n) for n in numbers] for name, numbers in PARTS.items()}
    second = {**make_row(1), "caption": "(B) Another part.", "p_meth_label": "mass spectrometry"}
    rows["train.csv"].append(second)
    rows["test.csv"].append({**make_row(2), "p_meth_label": ""})
    return rows


@pytest.fixture
def folder(tmp_path, rows, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "melinda"
    for name, table in rows.items():
        save_table(folder / name, table)
        for row in table:
            save_image(folder / "melinda_images" / str(row["figure_file"]))
    return folder


def test_captions_classes_and_split(folder, built, tmp_path, capsys) -> None:
    found = built("melinda", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 9,
        "validation": 2,
        "test": 3,
    }
    first, again = (found["train"][f"1001_dummy_1.jpg{n}"] for n in ("", "#2"))
    source = pipeline.open_source("melinda", "train", tmp_path / "out")
    assert tuple(source.label_names) == ("mass spectrometry", "western blot")
    assert first["text"] == '(A) Dummy blot, "number" 1.'
    assert again["text"] == "(B) Another part."
    assert (first["label"].tolist(), again["label"].tolist()) == ([0, 1], [1, 0])
    assert first["image"] == again["image"]
    assert (first["i_meth"], first["p_meth"], first["i_meth_label"]) == ("1", "MI:001", "genetic")
    assert found["test"]["1002_dummy_2.jpg#2"]["label"].tolist() == [-2, -2]
    printed = capsys.readouterr().out
    assert "rows in the table 14 (published: 5371)" in printed
    assert "classes of p_meth_label: 2 (published: 7)" in printed
    assert "1 figures are listed in more than one of the published splits" in printed


def test_fine_classes_are_in_numeric_order(folder, built, tmp_path) -> None:
    found = built("melinda/i_meth", folder)
    source = pipeline.open_source("melinda/i_meth", "train", tmp_path / "out")
    assert tuple(source.label_names) == tuple(str(n) for n in range(11))
    label = found["validation"]["1010_dummy_10.jpg"]["label"]
    assert label.tolist() == [0] * 10 + [1]


def test_wrong_files(folder, rows, built, save_table) -> None:
    (folder / "melinda_images" / "1009_dummy_9.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 14 images .*1009_dummy_9\.jpg"):
        built("melinda", folder)
    rows["dev.csv"][1]["figure_file"] = ""
    save_table(folder / "dev.csv", rows["dev.csv"])
    with pytest.raises(UserError, match=r"dev\.csv line 3: figure_file is blank"):
        built("melinda", folder)
    save_table(folder / "dev.csv", [{"figure_file": "a.jpg", "caption": "x"}])
    with pytest.raises(UserError, match=r"dev\.csv has no column p_meth_label, p_meth"):
        built("melinda", folder)
    (folder / "dev.csv").unlink()
    with pytest.raises(UserError, match=r"missing dev\.csv .*github\.com/PlusLabNLP/melinda"):
        built("melinda", folder)
