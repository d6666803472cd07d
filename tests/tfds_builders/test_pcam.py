"""Without it patches of PatchCamelyon could get the label or the slide of another."""

from __future__ import annotations

import gzip
import pathlib
import pickle

import cv2
import h5py
import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError
from tfds_builders.pcam.h5_rows import H5Rows

NAME = "camelyonpatch_level_2_split_{}_{}.h5"
COUNTS = {"train": 5, "valid": 2, "test": 3}


def save_h5(file: pathlib.Path, name: str, values: np.ndarray, *, compressed: bool = True) -> None:
    """A file as published: one dataset, the whole file gzip-compressed."""
    with h5py.File(file, "w") as opened:
        opened[name] = values
    if compressed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


@pytest.fixture
def patches() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s: rng.integers(0, 256, (n, 96, 96, 3), np.uint8) for s, n in COUNTS.items()}


@pytest.fixture
def folder(tmp_path, patches) -> pathlib.Path:
    folder = tmp_path / "pcam"
    folder.mkdir()
    for split, images in patches.items():
        labels = (np.arange(len(images)) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        save_h5(folder / NAME.format(split, "x"), "x", images)
        save_h5(folder / NAME.format(split, "y"), "y", labels, compressed=split != "test")
    return folder


def save_slides(folder: pathlib.Path, split: str, slides: list[str]) -> None:
    lines = [f"{i},1,2,True,True,{slide}" for i, slide in enumerate(slides)]
    header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
    file = folder / f"camelyonpatch_level_2_split_{split}_meta.csv"
    file.write_text("\n".join([header, *lines]) + "\n")


def test_patches_labels_and_counts(folder, built, patches, tmp_path, capsys) -> None:
    found = built("pcam", folder, quality="0")
    assert {s: len(rows) for s, rows in found.items()} == {"train": 5, "validation": 2, "test": 3}
    example = found["train"]["train/3"]
    image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(image, patches["train"][3])
    assert example["label"].tolist() == [1]
    assert found["validation"]["validation/0"]["label"].tolist() == [0]
    assert "(published: 262144)" in capsys.readouterr().out
    report = check.check_dataset("pcam", str(tmp_path / "out"))
    assert report.problems == (
        "train has 5 examples, published: 262144",
        "validation has 2 examples, published: 32768",
        "test has 3 examples, published: 32768",
    )


def test_slides_are_the_subjects(folder, built, capsys) -> None:
    save_slides(folder, "train", ["s1", "s1", "s2", "s2", "s3"])
    save_slides(folder, "valid", ["s3", "s4"])
    found = built("pcam", folder)
    assert found["train"]["train/4"]["subject_id"] == "s3"
    assert found["test"]["test/0"]["subject_id"] == "image:test/0"
    printed = capsys.readouterr().out
    assert "warning: 1 slides are in more than one of the published splits" in printed
    save_slides(folder, "test", ["s5"])
    with pytest.raises(UserError, match=r"test_meta\.csv has 1 rows, but there are 3 images"):
        built("pcam", folder, name="second")


def test_errors_name_the_file(folder, built, patches) -> None:
    y = NAME.format("valid", "y")
    save_h5(folder / y, "y", np.full((2, 1, 1, 1), 2, np.uint8))
    with pytest.raises(UserError, match=r"valid_y\.h5: y is \(2, 1\) up to 2, expected 0 or 1"):
        built("pcam", folder)
    (folder / y).unlink()
    save_h5(folder / y, "labels", np.zeros((2, 1, 1, 1), np.uint8))
    with pytest.raises(UserError, match=r"valid_y\.h5 has no dataset y"):
        built("pcam", folder)
    (folder / y).unlink()
    packed = folder / f"{y}.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"valid_y\.h5\.gz is damaged"):
        built("pcam", folder)
    assert not list(folder.glob("*.part*"))
    x = NAME.format("train", "x")
    save_h5(folder / x, "x", patches["train"][:, :64], compressed=False)
    save_h5(folder / y, "y", np.zeros((2, 1, 1, 1), np.uint8))
    with pytest.raises(UserError, match=r"train_x\.h5: x is uint8 \(5, 64, 96, 3\)"):
        built("pcam", folder)
    packed.unlink()
    (folder / y).unlink()
    with pytest.raises(UserError, match=r"missing .*valid_y\.h5 .*zenodo"):
        built("pcam", folder)


def test_rows_survive_the_way_to_another_process(tmp_path, patches) -> None:
    save_h5(tmp_path / "a.h5", "x", patches["train"], compressed=False)
    rows = H5Rows(tmp_path / "a.h5", "x")
    copy = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(copy[4], patches["train"][4])
    rows.close()
    copy.close()
