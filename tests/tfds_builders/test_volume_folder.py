"""Without it a user's brain MR or CT volumes could not be trained on, or be stored with the wrong window."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError
from tfds_builders.volume_folder.volume_folder import VolumeFolder, parse_window

SHAPE = (6, 20, 24)  # D, H, W of the result


def brain(number: int, air: float = 0.0) -> np.ndarray:
    """A dark block with a bright one at the front left of the lowest slices."""
    voxels = np.full(SHAPE, air, np.float32)
    voxels[:, 4:16, 4:20] = 100
    voxels[:3, 4:8, 14:20] = 200 + number
    return voxels


def save_nifti(file: pathlib.Path, voxels: np.ndarray) -> None:
    """As RAS, 3 mm between slices, 1 mm pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(
        voxels[:, ::-1, ::-1].transpose(2, 1, 0).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])
    )
    nibabel.save(image, file)


def save_table(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {
            "volume": f"brain/{i:02d}.nii.gz",
            "report": f"Invented report {i}.",
            "label": "lesion" if i % 2 else "normal",
            "patient_id": f"p{i // 2}",
        }
        for i in range(20)
    ]


@pytest.fixture
def folder(tmp_path, rows) -> pathlib.Path:
    """Twenty volumes of ten patients."""
    folder = tmp_path / "my brains"
    for i, row in enumerate(rows):
        save_nifti(folder / row["volume"], brain(i))
    save_table(folder, rows)
    return folder


def grey(example: dict[str, Any]) -> np.ndarray:
    """Decoded slices [D, H, W]."""
    found = [cv2.imdecode(np.frombuffer(s, np.uint8), 0) for s in example["slices"]]
    return np.stack([image for image in found if image is not None])


def test_slices_texts_and_splits(folder, built, tmp_path, capsys) -> None:
    found = built("volume_folder", folder, quality="0")
    assert {s: len(rows) for s, rows in found.items()} == {"train": 14, "validation": 2, "test": 4}
    examples = {name: e for rows in found.values() for name, e in rows.items()}
    example = examples["brain/03.nii.gz"]
    volume = grey(example)
    assert volume.shape == SHAPE
    assert (volume[:3, 4:8, 14:20] == 255).all()  # front left, at the foot
    assert (volume[3:, 4:8, 14:20] == volume[0, 12, 8]).all()
    assert not volume[:, :4].any()
    np.testing.assert_allclose(example["spacing"], [3, 1, 1])
    assert example["text"] == "Invented report 3."
    assert example["subject_id"] == "p1"
    assert example["label"].tolist() == [1, 0]  # lesion, normal
    by_patient = {e["subject_id"]: split for split, rows in found.items() for e in rows.values()}
    assert all(by_patient[e["subject_id"]] == s for s, rows in found.items() for e in rows.values())
    printed = capsys.readouterr().out
    assert "volume_folder/my_brains" in printed
    assert "14 images, 7 patients" in printed
    report = check.check_dataset("volume_folder", str(tmp_path / "out"))
    assert not [p for p in report.problems if "patients" in p]


def test_depth_size_and_windows(folder, built) -> None:
    save_nifti(folder / "brain/00.nii.gz", brain(0, air=-1000))
    options = {"quality": "0", "depth": "3", "size": "10"}
    found = built("volume_folder", folder, window="100,400", **options)
    examples = {name: e for rows in found.values() for name, e in rows.items()}
    example = examples["brain/01.nii.gz"]
    assert grey(example).shape == (3, 10, 12)
    np.testing.assert_allclose(example["spacing"], [6, 2, 2])
    assert grey(example)[2, 6, 4] == 128  # 100 in a window of 400 around 100
    auto = built("volume_folder", folder, name="auto", **options)
    examples = {name: e for rows in auto.values() for name, e in rows.items()}
    assert grey(examples["brain/00.nii.gz"])[2, 6, 4] == 166  # (100 - 40 + 200) / 400: a CT
    lung = VolumeFolder.make_config(folder, {"window": "lung"})
    assert parse_window(lung.window) == (-600, 1500)


def test_read_back_as_batches(folder, built, tmp_path) -> None:
    built("volume_folder", folder, name="default")
    source = pipeline.open_source("volume_folder/default", "train", tmp_path / "out")
    assert source.label_names == ("lesion", "normal")
    assert all(len(example["slices"]) == SHAPE[0] for example in source)


def test_columns_labels_alone_and_given_splits(folder, built, rows) -> None:
    changed = [
        {
            "scan": row["volume"],
            "note": "" if i < 2 else row["report"],
            "label": "" if i == 0 else row["label"],
            "patient_id": row["patient_id"],
            "split": "test" if i >= 16 else "train",
        }
        for i, row in enumerate(rows)
    ]
    save_table(folder, changed)
    found = built("volume_folder", folder, volume_column="scan", text_column="note")
    assert {split: len(examples) for split, examples in found.items()} == {"train": 15, "test": 4}
    assert found["train"]["brain/01.nii.gz"]["text"] == ""
    save_table(folder, [{**row, "patient_id": "p0"} for row in changed])
    with pytest.raises(UserError, match="one patient is in train and in test"):
        built("volume_folder", folder, volume_column="scan", text_column="note", name="b")


def test_dicom_folders_and_damaged_volumes(folder, built, rows, tmp_path, data_dir) -> None:
    series = folder / "ct/one"
    series.mkdir(parents=True)
    (series / "a").write_bytes((data_dir / "odd/dicom/CT_small.dcm").read_bytes())
    (folder / "empty").mkdir()
    (folder / "brain/05.nii.gz").write_bytes(b"\x1f\x8bno")
    (tmp_path / "outside.nii").write_bytes(b"")
    (folder / "link.nii").symlink_to(tmp_path / "outside.nii")
    more = [
        {"volume": name, "report": "Invented.", "label": "normal", "patient_id": name}
        for name in ("ct/one", "empty", "link.nii")
    ]
    save_table(folder, [*rows, *more])
    found = built("volume_folder", folder, max_rejected="0.2", fractions="1,0,0")
    example = found["train"]["ct/one"]
    assert grey(example).shape == (1, 128, 128)
    np.testing.assert_allclose(example["spacing"], [5, 0.661468, 0.661468])
    assert not any("CompressedSamples" in str(value) for value in example.values())
    listed = (tmp_path / "out/volume_folder/my_brains/rejected.jsonl").read_text()
    assert len(listed.splitlines()) == 3
    for reason in ("damaged NIfTI", "holds no DICOM file", "leads out of the folder"):
        assert reason in listed


def test_errors_name_the_table(folder, built, rows) -> None:
    for options, message in (
        ({"window": "dark"}, "window='dark': expected auto, percentiles, soft_tissue"),
        ({"window": "40,-1"}, "or LEVEL,WIDTH"),
        ({"fractions": "1,1,1"}, "fractions='1,1,1'"),
        ({"depths": "3"}, "option 'depths' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            built("volume_folder", folder, **options)
    save_table(folder, [*rows, rows[3]])
    with pytest.raises(UserError, match=r"lists brain/03\.nii\.gz twice"):
        built("volume_folder", folder)
    save_table(folder, [*rows, {**rows[3], "volume": "brain/99.nii.gz"}])
    with pytest.raises(UserError, match=r"1 of 21 images .*brain/99\.nii\.gz"):
        built("volume_folder", folder)
    save_table(folder, [{**row, "report": "", "label": ""} for row in rows])
    with pytest.raises(UserError, match="all 20 rows are without text and label"):
        built("volume_folder", folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="holds no table"):
        built("volume_folder", folder)
