"""Without it boxes could be scaled wrongly, and the patients that the published split shares go unsaid."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

TRAIN = (
    ("00000001_000.png", ["Fibrosis", "Nodule"], [[10, 20, 30, 40], [0, 0, 25, 20]]),
    ("00000001_001.png", [], []),
    ("00000002_000.png", ["Effusion"], [[5, 5, 15, 15]]),
    *((f"{n:08d}_000.png", [], []) for n in range(10, 29)),
)
TEST = (("00000002_003.png", ["Mass"], [[0, 0, 50, 40]]), ("00000009_000.png", [], []))


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "det10"
    for split, rows in (("train", TRAIN), ("test", TEST)):
        entries = [{"file_name": n, "syms": s, "boxes": b} for n, s, b in rows]
        for name, *_ in rows:
            save_image(folder / f"{split}_data" / name, 40, 50)
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


def test_boxes_labels_and_shared_patients(folder, built, tmp_path, capsys) -> None:
    found = built("chestx_det10", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 22, "test": 2}
    first = found["train"]["00000001_000.png"]
    assert first["label"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    np.testing.assert_allclose(
        first["boxes"]["bbox"], [[0.5, 0.2, 1.0, 0.6], [0.0, 0.0, 0.5, 0.5]], atol=1e-6
    )
    assert np.asarray(first["boxes"]["label"]).tolist() == [5, 8]
    assert first["subject_id"] == "00000001"
    assert not found["train"]["00000001_001.png"]["label"].any()
    printed = capsys.readouterr().out
    assert "warning: 1 patients are in train and in test of the published split" in printed
    assert "22 images (published: 3001)" in printed


def test_leak_free_drops_the_patients_of_the_test_set(folder, built, tmp_path) -> None:
    found = built("chestx_det10/leak_free", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 19, "validation": 2, "test": 2}
    subjects = [{e["subject_id"] for e in rows.values()} for rows in found.values()]
    assert len(set.union(*subjects)) == sum(map(len, subjects))
    metadata = pipeline.open_source("chestx_det10/leak_free", "train", tmp_path / "out").metadata
    assert metadata["dropped"] == {"patient_of_test": 1, "rejected": 0}
    report = check.check_dataset("chestx_det10/leak_free", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_images_in_the_folders_of_nih(folder, built) -> None:
    (folder / "train_data").rename(folder / "images_001")
    (folder / "test_data").rename(folder / "images_002")
    found = built("chestx_det10", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 22, "test": 2}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["Mass"]', "[]", "entry 1: syms and boxes are not lists of one length"),
        ("Mass", "Hernia", "entry 1: 'Hernia' is not one of Atelectasis"),
        ("[0, 0, 50, 40]", '"0 0 50 40"', "box is '0 0 50 40', expected four numbers"),
        ("syms", "labels", "entry 1 has no syms"),
    ],
)
def test_wrong_files_are_explained(folder, built, old, new, message) -> None:
    text = (folder / "test.json").read_text()
    assert old in text
    (folder / "test.json").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        built("chestx_det10", folder)


def test_missing_files_are_named(folder, built) -> None:
    (folder / "test_data" / TEST[0][0]).unlink()
    with pytest.raises(UserError, match=r"1 of 24 images .*test_data/00000002_003\.png"):
        built("chestx_det10", folder)
    (folder / "test.json").unlink()
    with pytest.raises(UserError, match=r"missing test\.json .*Deepwise"):
        built("chestx_det10", folder)
