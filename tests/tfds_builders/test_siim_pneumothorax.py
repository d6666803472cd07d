"""Without it pneumothorax masks could be transposed, lost, or belong to another image."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

NAMES = [f"1.2.276.0.7230010.3.1.4.{i}" for i in range(20)]
TABLE = "train-rle.csv"


def save_masks(folder: pathlib.Path, cells: dict[str, list[str]], table: str = TABLE) -> None:
    """The table as published: the second header and its cells start with a blank."""
    rows = [f"{name}, {runs}" for name, found in cells.items() for runs in found]
    (folder / table).write_text("ImageId, EncodedPixels\n" + "\n".join(rows) + "\n")


@pytest.fixture
def cells() -> dict[str, list[str]]:
    """Two masks of the first image (40 high, 50 wide), which has its first column, and pixel (5, 2)."""
    return {**{name: ["-1"] for name in NAMES}, NAMES[0]: ["0 40", "85 1"]}


@pytest.fixture
def folder(tmp_path, save_dicom, cells) -> pathlib.Path:
    folder = tmp_path / "siim"
    for i, name in enumerate(NAMES):
        place = "dicom-images-train" if i < 15 else "dicom-images-test"
        save_dicom(folder / place / f"study{i}" / f"series{i}" / f"{name}.dcm", 40, 50)
    save_masks(folder, cells)
    return folder


def pixels(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_masks_labels_and_counts(folder, built, cells, tmp_path, capsys) -> None:
    found = built("siim_pneumothorax", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 14,
        "validation": 3,
        "test": 3,
    }
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    expected = np.zeros((40, 50), np.uint8)
    expected[:, 0] = 255
    expected[5, 2] = 255
    np.testing.assert_array_equal(pixels(rows[NAMES[0]]["mask"]), expected)
    assert rows[NAMES[0]]["label"].tolist() == [1]
    assert rows[NAMES[1]]["label"].tolist() == [0]
    assert not pixels(rows[NAMES[1]]["mask"]).any()
    printed = capsys.readouterr().out
    assert "rows in the table 20 (published: 10675)" in printed
    assert "does not publish which images are of one patient" in printed
    save_masks(folder, cells, "stage_2_train.csv")
    built("siim_pneumothorax", folder, name="second", size="20")
    assert "(published: 12047)" in capsys.readouterr().out
    source = pipeline.open_source("siim_pneumothorax/second", "train", tmp_path / "out")
    assert {pixels(e["mask"]).shape for e in source} == {(20, 25)}
    assert {pixels(e["image"]).shape for e in source} == {(20, 25)}
    report = check.check_dataset("siim_pneumothorax/second", str(tmp_path / "out"))
    assert report.problems == ("the table has 20 rows, published: 12047",)


def test_damaged_run_lengths_are_rejected(folder, built, cells, tmp_path) -> None:
    save_masks(folder, {**cells, NAMES[2]: ["1990 20"]})
    found = built("siim_pneumothorax", folder, max_rejected="0.1")
    assert not any(NAMES[2] in rows for rows in found.values())
    listed = (tmp_path / "out/siim_pneumothorax/default/rejected.jsonl").read_text()
    assert "cover 2010 pixels of 50 x 40" in listed


def test_errors_name_the_file(folder, built, cells) -> None:
    save_masks(folder, {**cells, NAMES[0]: ["0 40", "-1"]})
    with pytest.raises(UserError, match=r"line 3: .* has a mask and -1"):
        built("siim_pneumothorax", folder)
    save_masks(folder, {**cells, NAMES[0]: [""]})
    with pytest.raises(UserError, match="line 2: EncodedPixels is blank"):
        built("siim_pneumothorax", folder)
    save_masks(folder, {**cells, "1.2.3": ["-1"]})
    with pytest.raises(UserError, match=r"1 of 21 images .*1\.2\.3\.dcm"):
        built("siim_pneumothorax", folder)
    (folder / TABLE).unlink()
    with pytest.raises(UserError, match=r"missing stage_2_train\.csv or train-rle\.csv .*kaggle"):
        built("siim_pneumothorax", folder)
