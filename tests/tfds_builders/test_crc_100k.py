"""Without it kinds of tissue could be mixed up, or patches without stain normalization be taken."""

from __future__ import annotations

import pathlib
import shutil

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError
from tfds_builders.crc_100k.crc_100k import Crc100k

TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")


def save_patch(file: pathlib.Path, red: int) -> None:
    """A flat patch as TIFF, recognised by its red."""
    file.parent.mkdir(parents=True, exist_ok=True)
    patch = np.zeros((32, 32, 3), np.uint8)
    patch[:, :, 2] = red
    assert cv2.imwrite(str(file), patch)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    folder = tmp_path / "crc"
    for k, tissue in enumerate(TISSUES):
        for i in range(2):
            save_patch(folder / "NCT-CRC-HE-100K" / tissue / f"{tissue}-AAA{i}.tif", 20 * k + 10)
        save_patch(folder / "CRC-VAL-HE-7K" / tissue / f"{tissue}-TCGA-{k}.tif", 20 * k + 15)
    return folder


def test_tissues_and_counts(folder, built, tmp_path, capsys) -> None:
    found = built("crc_100k", folder, quality="0")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 18, "test": 9}
    example = found["train"]["train/MUS-AAA1"]
    assert example["label"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    assert image[0, 0].tolist() == [110, 0, 0]
    assert found["test"]["test/TUM-TCGA-8"]["label"].argmax() == 8
    printed = capsys.readouterr().out
    assert "crc_100k/normalized" in printed
    assert "train: ADI 2, BACK 2" in printed
    assert "(published: 100000)" in printed
    report = check.check_dataset("crc_100k", str(tmp_path / "out"))
    assert "train has 18 examples, published: 100000" in report.problems


def test_patches_without_normalization(folder, built) -> None:
    shutil.copytree(folder / "NCT-CRC-HE-100K", folder / "NCT-CRC-HE-100K-NONORM")
    (folder / "NCT-CRC-HE-100K-NONORM/ADI/ADI-AAA0.tif").unlink()
    assert len(built("crc_100k/original", folder)["train"]) == 17
    for stain, name in (
        ("normalized", "NCT-CRC-HE-100K"),
        ("original", "NCT-CRC-HE-100K-NONORM"),
    ):
        found = Crc100k.downloads(Crc100k.make_config(folder, {"name": stain}))
        assert [d.path for d in found] == [f"{name}.zip", "CRC-VAL-HE-7K.zip"]


def test_damaged_and_missing_files(folder, built, tmp_path) -> None:
    (folder / "CRC-VAL-HE-7K/STR/STR-TCGA-7.tif").write_bytes(b"<html>")
    found = built("crc_100k", folder, max_rejected="0.1")
    assert "test/STR-TCGA-7" not in found["test"]
    listed = (tmp_path / "out/crc_100k/normalized/rejected.jsonl").read_text()
    assert "HTML or XML page" in listed
    shutil.rmtree(folder / "CRC-VAL-HE-7K/DEB")
    with pytest.raises(UserError, match=r"missing CRC-VAL-HE-7K/DEB .*zenodo"):
        built("crc_100k", folder, name="second")
    (folder / "CRC-VAL-HE-7K/DEB").mkdir()
    with pytest.raises(UserError, match=r"DEB holds no \.tif file"):
        built("crc_100k", folder, name="second")
