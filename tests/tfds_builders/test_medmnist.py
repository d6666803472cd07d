"""Without it a set of MedMNIST could get another's classes, or a short file pass as the published one."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError
from tfds_builders.medmnist.medmnist import Medmnist
from tfds_builders.medmnist.npz_rows import NpzRows

COUNTS = {"train": 5, "val": 2, "test": 3}


def arrays(*shape: int, classes: int, columns: int = 1) -> dict[str, np.ndarray]:
    """The six arrays of a file; labels count up."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for split, count in COUNTS.items():
        found[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        labels = np.arange(count * columns).reshape(count, columns) % classes
        found[f"{split}_labels"] = labels.astype(np.uint8)
    return found


def save(folder: pathlib.Path, name: str, content: dict[str, np.ndarray]) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / name, allow_pickle=False, **content)
    return folder


def pixels(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image[:, :, ::-1] if image.ndim == 3 else image


def test_classes_and_pixels(tmp_path, built, capsys) -> None:
    content = arrays(28, 28, 3, classes=9)
    found = built("medmnist/pathmnist", save(tmp_path / "npz", "pathmnist.npz", content))
    assert {s: len(rows) for s, rows in found.items()} == {"train": 5, "validation": 2, "test": 3}
    example = found["test"]["test/2"]
    np.testing.assert_array_equal(pixels(example["image"]), content["test_images"][2])
    assert example["label"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    printed = capsys.readouterr().out
    assert "(published: 89996)" in printed
    assert "colorectal adenocarcinoma epithelium" in printed


def test_several_findings_and_other_sizes(tmp_path, built) -> None:
    content = arrays(64, 64, classes=2, columns=14)
    folder = save(tmp_path / "npz", "chestmnist_64.npz", content)
    found = built("medmnist/chestmnist_64", folder)
    example = found["validation"]["validation/1"]
    assert example["label"].tolist() == content["val_labels"][1].tolist()
    np.testing.assert_array_equal(pixels(example["image"]), content["val_images"][1])


def test_volumes_are_stored_as_slices(tmp_path, built) -> None:
    content = arrays(28, 28, 28, classes=3)
    folder = save(tmp_path / "npz", "fracturemnist3d.npz", content)
    found = built("medmnist/fracturemnist3d", folder)
    example = found["train"]["train/4"]
    volume = np.stack([pixels(data) for data in example["slices"]])
    np.testing.assert_array_equal(volume, content["train_images"][4])
    assert np.isnan(example["spacing"]).all()
    assert example["label"].tolist() == [0, 1, 0]
    assert "image" not in example


def test_a_short_real_file_is_a_difference(data_dir, built, tmp_path, capsys) -> None:
    found = built("medmnist/pneumoniamnist", data_dir / "pneumoniamnist")
    counts = {split: len(rows) for split, rows in found.items()}
    assert counts == {"train": 3882, "validation": 524, "test": 624}
    labels = np.stack([e["label"] for e in found["test"].values()])
    assert labels.sum(axis=0).tolist() == [234, 390]  # normal, pneumonia, as in the paper
    assert "3882 images (published: 4708)" in capsys.readouterr().out
    report = check.check_dataset("medmnist/pneumoniamnist", str(tmp_path / "out"))
    assert "train has 3882 examples, published: 4708" in report.problems


def test_downloads_are_those_of_the_config(tmp_path) -> None:
    config = Medmnist.make_config(tmp_path, {"name": "bloodmnist_128"})
    (download,) = Medmnist.downloads(config)
    assert download.path == "bloodmnist_128.npz"
    assert download.checksum == "md5:adace1e0ed228fccda1f39692059dd4c"
    with pytest.raises(UserError, match="side=128: organmnist3d has the sides 28, 64"):
        Medmnist.downloads(Medmnist.make_config(tmp_path, {"set": "organmnist3d", "side": "128"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": None}, "has no array val_labels"),
        (
            {"val_labels": np.full((2, 1), 2)},
            "val_labels are .* up to 2, expected 0 to 1 for normal",
        ),
        ({"val_labels": np.zeros((3, 1))}, "validation has 2 images and 3 labels"),
        ({"val_images": np.zeros((2, 64, 64), np.uint8)}, "expected a side of 28"),
        ({"val_images": np.zeros((2, 28, 28), np.float32)}, "expected uint8"),
    ],
)
def test_damaged_files(tmp_path, built, change: dict[str, Any], message) -> None:
    content = {**arrays(28, 28, classes=2), **change}
    content = {name: value for name, value in content.items() if value is not None}
    folder = save(tmp_path / "npz", "pneumoniamnist.npz", content)
    with pytest.raises(UserError, match=message):
        built("medmnist/pneumoniamnist", folder)


def test_truncated_and_missing_files(tmp_path, built) -> None:
    folder = save(tmp_path / "npz", "breastmnist.npz", arrays(28, 28, classes=2))
    file = folder / "breastmnist.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"breastmnist\.npz is not a complete npz file"):
        built("medmnist/breastmnist", folder)
    with pytest.raises(UserError, match=r"missing octmnist_224\.npz .*zenodo"):
        built("medmnist/octmnist_224", folder)


@pytest.mark.parametrize("save_array", [np.savez, np.savez_compressed])
def test_rows_are_read_in_any_order(tmp_path, save_array) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 300, 400), np.uint8)
    save_array(tmp_path / "a.npz", x=array)
    rows = NpzRows(tmp_path / "a.npz", "x")
    for index in (0, 39, 3, 38, 1):
        np.testing.assert_array_equal(rows[index], array[index])
    copy = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(copy[7], array[7])
    rows.close()
    copy.close()
