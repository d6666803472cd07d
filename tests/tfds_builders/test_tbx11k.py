"""Without it boxes could be of another image, or unlabelled tuberculosis be stored as known."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

TRAIN = ("health/h0001.png", "sick/s0001.png", "tb/tb0001.png", "tb/tb1199.png", "tb/tb0002.png")
VAL = ("health/h0002.png", "tb/tb0003.png")
KINDS = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")


def coco(names: tuple[str, ...], boxes: list[tuple[str, int, list[float]]]) -> dict:
    """A file as the dataset's own script writes it; ids start at 1."""
    return {
        "info": [{"description": "TBX11K Dataset"}],
        "categories": [
            {"id": k, "name": name, "supercategory": "Tuberculosis"}
            for k, name in enumerate(KINDS, start=1)
        ],
        "images": [
            {"id": k, "file_name": name, "width": 512, "height": 512}
            for k, name in enumerate(names, start=1)
        ],
        "annotations": [
            {"id": k, "image_id": names.index(name) + 1, "category_id": kind, "bbox": box}
            for k, (name, kind, box) in enumerate(boxes, start=1)
        ],
    }


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "TBX11K"
    halves = (
        (
            "TBX11K_train",
            TRAIN,
            [
                ("tb/tb0001.png", 1, [10.0, 20.0, 20.0, 10.0]),
                ("tb/tb0001.png", 2, [-1.0, 0.0, 26.0, 40.0]),
                ("tb/tb0002.png", 3, [0.0, 0.0, 50.0, 40.0]),
            ],
        ),
        ("TBX11K_val", VAL, [("tb/tb0003.png", 1, [5.0, 5.0, 10.0, 10.0])]),
    )
    for directory in ("lists", "annotations/json"):
        (folder / directory).mkdir(parents=True)
    for name, images, boxes in halves:
        (folder / "lists" / f"{name}.txt").write_text("\n".join(images) + "\n")
        (folder / "annotations" / "json" / f"{name}.json").write_text(
            json.dumps(coco(images, boxes))
        )
        for image in images:
            save_image(folder / "imgs" / image, 40, 50)
    return folder


def test_groups_kinds_and_boxes(folder, built, tmp_path, capsys) -> None:
    found = built("tbx11k", folder)
    labels = {n: e["label"].tolist() for rows in found.values() for n, e in rows.items()}
    assert labels == {
        "health/h0001.png": [1, 0, 0, 0, 0, 0],
        "sick/s0001.png": [0, 1, 0, 0, 0, 0],
        "tb/tb0001.png": [0, 0, 1, 1, 1, 0],
        "tb/tb1199.png": [0, 0, 1, -2, -2, -2],
        "tb/tb0002.png": [0, 0, 1, 0, 0, 1],
        "health/h0002.png": [1, 0, 0, 0, 0, 0],
        "tb/tb0003.png": [0, 0, 1, 1, 0, 0],
    }
    assert set(found["validation"]) == set(VAL)
    both = found["train"]["tb/tb0001.png"]["boxes"]
    np.testing.assert_allclose(both["bbox"], [[0.5, 0.2, 0.75, 0.6], [0, 0, 1, 0.5]], atol=1e-6)
    assert np.asarray(both["label"]).tolist() == [3, 4]
    assert "5 images (published: 6600)" in capsys.readouterr().out
    report = check.check_dataset("tbx11k/official", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_holdout_tests_on_val(folder, built) -> None:
    for number in range(10, 30):
        name = f"health/h{number:04d}.png"
        (folder / "imgs" / name).write_bytes((folder / "imgs" / TRAIN[0]).read_bytes())
        with (folder / "lists" / "TBX11K_train.txt").open("a") as file:
            file.write(f"{name}\n")
    found = built("tbx11k/holdout", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 22, "validation": 3, "test": 2}
    assert set(found["test"]) == set(VAL)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "lists/TBX11K_train.txt",
            "sick/",
            "ill/",
            r"entry 2 is 'ill/s0001\.png', expected health",
        ),
        ("lists/TBX11K_val.txt", "tb/tb0003.png", "", r"boxes of tb/tb0003\.png, which .*does not"),
        ("annotations/json/TBX11K_val.json", "category_id", "kind", "entry 1 has no category_id"),
        ("annotations/json/TBX11K_val.json", '"category_id": 1', '"category_id": 7', "category 7"),
        ("annotations/json/TBX11K_val.json", "[5.0, ", "[", r"box is \[5\.0, 10\.0, 10\.0\], exp"),
        ("annotations/json/TBX11K_val.json", '"images"', '"pictures"', "has no images of objects"),
        ("annotations/json/TBX11K_val.json", "{", "<", "is not JSON"),
    ],
)
def test_wrong_files_are_explained(folder, built, file, old, new, message) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        built("tbx11k", folder)


def test_missing_files_are_named(folder, built) -> None:
    (folder / "imgs" / TRAIN[1]).unlink()
    with pytest.raises(UserError, match=r"1 of 7 images .*imgs/sick/s0001\.png"):
        built("tbx11k", folder)
    (folder / "lists" / "TBX11K_val.txt").unlink()
    with pytest.raises(UserError, match=r"missing lists/TBX11K_val\.txt .*mmcheng"):
        built("tbx11k", folder)
