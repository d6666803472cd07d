"""Without it boxes could be scaled wrongly, and one NIH patient be in training and test."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

NAMES = [f"0000{i:04x}-dummy" for i in range(30)]


def row(name: str, *box: float) -> dict[str, object]:
    x, y, width, height = box or ("", "", "", "")
    target = int(bool(box))
    return {"patientId": name, "x": x, "y": y, "width": width, "height": height, "Target": target}


@pytest.fixture
def folder(tmp_path, save_dicom, save_table) -> pathlib.Path:
    folder = tmp_path / "rsna"
    labels = [row(NAMES[0], 10.0, 5.0, 20.0, 10.0), row(NAMES[0], 0.0, 20.0, 25.0, 30.0)]
    labels += [row(name) for name in NAMES[1:]]
    classes = [{"patientId": name, "class": "Normal"} for name in NAMES]
    classes[0]["class"] = "Lung Opacity"
    save_table(folder / "stage_2_train_labels.csv", labels)
    save_table(folder / "stage_2_detailed_class_info.csv", classes)
    for name in NAMES:
        save_dicom(folder / "stage_2_train_images" / f"{name}.dcm", 40, 50)
    return folder


def save_mapping(folder: pathlib.Path, names: list[str]) -> None:
    """Three images per NIH patient."""
    entries = [
        {"subset_img_id": name, "img_id": f"{i // 3:08d}_{i % 3:03d}.png", "orig_labels": []}
        for i, name in enumerate(names)
    ]
    file = folder / "pneumonia-challenge-dataset-mappings_2018.json"
    file.write_text(json.dumps(entries))


def test_boxes_labels_and_warning_without_patients(folder, built, tmp_path, capsys) -> None:
    found = built("rsna_pneumonia", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 18,
        "validation": 6,
        "test": 6,
    }
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    positive = rows[NAMES[0]]
    assert positive["label"].tolist() == [1]
    assert positive["detailed_class"] == "Lung Opacity"
    np.testing.assert_allclose(
        positive["boxes"]["bbox"], [[0.125, 0.2, 0.375, 0.6], [0.5, 0.0, 1.0, 0.5]], atol=1e-6
    )
    assert np.asarray(positive["boxes"]["label"]).tolist() == [0, 0]
    assert rows[NAMES[1]]["label"].tolist() == [0]
    assert len(rows[NAMES[1]]["boxes"]["bbox"]) == 0
    printed = capsys.readouterr().out
    assert "rows in the table 30 (published: 26684)" in printed
    assert "30 rows have no patient id" in printed
    assert "put pneumonia-challenge-dataset-mappings_2018.json" in printed
    report = check.check_dataset("rsna_pneumonia", str(tmp_path / "out"))
    assert report.problems == ("the table has 30 rows, published: 26684",)


def test_mapping_makes_splits_by_patient(folder, built, tmp_path) -> None:
    save_mapping(folder, NAMES)
    found = built("rsna_pneumonia", folder)
    patients = [{e["subject_id"] for e in rows.values()} for rows in found.values()]
    assert sorted(map(len, patients)) == [2, 2, 6]
    assert len(set.union(*patients)) == 10
    metadata = pipeline.open_source("rsna_pneumonia", "train", tmp_path / "out").metadata
    assert metadata["rows_without_patient"] == 0


def test_errors_name_the_file(folder, built, save_table) -> None:
    save_mapping(folder, NAMES[:-1])
    with pytest.raises(UserError, match=rf"does not list {NAMES[-1]} \(1 are missing\)"):
        built("rsna_pneumonia", folder)
    file = folder / "pneumonia-challenge-dataset-mappings_2018.json"
    file.write_text('[{"img": "a"}]')
    with pytest.raises(UserError, match="is not the published list of subset_img_id"):
        built("rsna_pneumonia", folder)
    file.unlink()
    (folder / "stage_2_train_images" / f"{NAMES[3]}.dcm").unlink()
    with pytest.raises(UserError, match=rf"1 of 30 images .*{NAMES[3]}\.dcm"):
        built("rsna_pneumonia", folder)
    save_table(folder / "stage_2_train_labels.csv", [{**row(NAMES[0]), "Target": "2"}])
    with pytest.raises(UserError, match=r"labels\.csv line 2: Target is '2', expected 0 or 1"):
        built("rsna_pneumonia", folder)
    (folder / "stage_2_detailed_class_info.csv").unlink()
    with pytest.raises(UserError, match=r"missing stage_2_detailed_class_info\.csv .*kaggle"):
        built("rsna_pneumonia", folder)


def test_box_outside_the_image_is_rejected_not_stored(folder, built, save_table, tmp_path) -> None:
    labels = [row(NAMES[0], 60.0, 5.0, 20.0, 10.0), *(row(name) for name in NAMES[1:])]
    save_table(folder / "stage_2_train_labels.csv", labels)
    found = built("rsna_pneumonia", folder, max_rejected="0.05")
    assert not any(NAMES[0] in rows for rows in found.values())
    listed = (tmp_path / "out/rsna_pneumonia/default/rejected.jsonl").read_text()
    assert "box x=60" in listed
