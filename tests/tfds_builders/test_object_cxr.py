"""Without it outlines could be drawn in the wrong place or shape, and objects be stored as absent."""

from __future__ import annotations

import csv
import io
import pathlib

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError


def mask_of(example: dict) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(example["mask"], np.uint8), cv2.IMREAD_GRAYSCALE) > 0


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "object-CXR"
    train = [
        ("00001.jpg", "0 10 5 20 15;1 30 10 40 30"),
        ("00002.jpg", ""),
        ("00003.jpg", "2 0 0 24 0 24 19 0 19"),
        ("00004.jpg", "2 -5 10 9 10 9 19"),
        ("00005.jpg", ""),
    ]
    dev = [("00001.jpg", ""), ("08001.jpg", "0 0 0 10 10;")]
    for name, rows in (("train", train), ("dev", dev)):
        table = [{"image_name": image, "annotation": text} for image, text in rows]
        save_table(folder / f"{name}.csv", table)
        for image, _ in rows:
            save_image(folder / name / image, 40, 50)
    return folder


def test_boxes_shapes_and_masks(folder, built, tmp_path, capsys) -> None:
    found = built("object_cxr", folder)
    train = found["train"]
    labels = {name: int(e["label"][0]) for name, e in train.items()}
    assert labels == {f"train/0000{n}.jpg": int(n in (1, 3, 4)) for n in range(1, 6)}
    assert set(found["validation"]) == {"dev/00001.jpg", "dev/08001.jpg"}
    first = train["train/00001.jpg"]
    assert list(first["box_shapes"]) == ["rectangle", "ellipse"]
    np.testing.assert_allclose(
        first["boxes"]["bbox"], [[0.125, 0.2, 0.375, 0.4], [0.25, 0.6, 0.75, 0.8]], atol=1e-6
    )
    mask = mask_of(first)
    assert mask.shape == (40, 50)
    assert mask[5:16, 10:21].all()
    assert mask[20, 30:41].all()
    assert not mask[11, 31]  # a corner of the box around the ellipse
    # Half a pixel around the outline belongs to it.
    assert mask[:, 25:].sum() == pytest.approx(np.pi * 5.5 * 10.5, rel=0.1)
    assert mask_of(train["train/00003.jpg"])[:20, :25].all()
    assert mask_of(train["train/00003.jpg"]).sum() == 20 * 25
    # What leads out of the image is cut.
    np.testing.assert_allclose(
        train["train/00004.jpg"]["boxes"]["bbox"], [[0.25, 0.0, 0.475, 0.18]], atol=1e-6
    )
    assert not mask_of(train["train/00002.jpg"]).any()
    assert "5 images (published: 8000)" in capsys.readouterr().out
    report = check.check_dataset("object_cxr/official", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_holdout_tests_on_dev(folder, built) -> None:
    found = built("object_cxr/holdout", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 4, "validation": 1, "test": 2}
    assert set(found["test"]) == {"dev/00001.jpg", "dev/08001.jpg"}


@pytest.mark.parametrize("text", ["3 1 1 2 2", "0 1 2 3", "1 1 1 2 2 3 3", "0 1 1 2 b", "2 1 1"])
def test_wrong_annotations_are_explained(folder, built, text) -> None:
    file = folder / "dev.csv"
    rows = list(csv.reader(io.StringIO(file.read_text())))
    rows[1][1] = text
    file.write_text("\n".join(",".join(row) for row in rows) + "\n")
    with pytest.raises(UserError, match=rf"dev\.csv line 2: annotation '{text}', expected 0"):
        built("object_cxr", folder)


def test_missing_files_are_named(folder, built) -> None:
    (folder / "dev" / "08001.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images .*dev/08001\.jpg"):
        built("object_cxr", folder)
    (folder / "train.csv").write_text("image_path,annotation\na.jpg,\n")
    with pytest.raises(UserError, match="has no column image_name"):
        built("object_cxr", folder)
    (folder / "dev.csv").unlink()
    with pytest.raises(UserError, match=r"missing dev\.csv .*academictorrents"):
        built("object_cxr", folder)
