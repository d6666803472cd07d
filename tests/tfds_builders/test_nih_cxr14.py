"""Without it ChestX-ray14 could get wrong labels or boxes, or a split that mixes patients."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

NAMES = load_spec("nih_cxr14").label_names
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
IMAGES = [f"{patient:08d}_{number:03d}.png" for patient in range(1, 31) for number in range(2)]


def save_entries(folder: pathlib.Path, findings: dict[str, str], ages: dict[str, str]) -> None:
    lines = [HEADER]
    for name in IMAGES:
        patient, number = int(name[:8]), int(name[9:12])
        lines.append(
            f"{name},{findings.get(name, 'No Finding')},{number},{patient},{ages.get(name, '58')},M,PA,"
            "2682,2749,0.143,0.143,"
        )
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "nih"
    for name in IMAGES:
        place = "images_001" if int(name[:8]) < 15 else "images_012"
        save_image(folder / place / "images" / name, 40, 50)
    findings = {IMAGES[0]: "Cardiomegaly|Effusion", IMAGES[1]: "Pleural_Thickening"}
    save_entries(folder, findings, {IMAGES[1]: "414", IMAGES[2]: "058Y", IMAGES[3]: "011M"})
    (folder / "BBox_List_2017.csv").write_text(
        f"{BOXES}{IMAGES[0]},Cardiomegaly,10.0,20.0,25.0,10.0,,,\n"
        f"{IMAGES[0]},Infiltrate,0.0,0.0,50.0,40.0,,,\n"
    )
    (folder / "train_val_list.txt").write_text("\n".join(IMAGES[:40]))
    (folder / "test_list.txt").write_text("\n".join(IMAGES[40:]) + "\n")
    return folder


def test_official_split_labels_and_boxes(folder, built, tmp_path, capsys) -> None:
    found = built("nih_cxr14", folder)
    assert sorted(found["test"]) == IMAGES[40:]
    assert sorted([*found["train"], *found["validation"]]) == IMAGES[:40]
    assert len(found["validation"]) == 4  # two of twenty patients
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    first = rows[IMAGES[0]]
    positive = {n for n, v in zip(NAMES, first["label"].tolist(), strict=True) if v == 1}
    assert positive == {"Cardiomegaly", "Effusion"}
    assert not rows[IMAGES[2]]["label"].any()
    np.testing.assert_allclose(
        first["boxes"]["bbox"], [[0.5, 0.2, 0.75, 0.7], [0, 0, 1, 1]], atol=1e-6
    )
    labels = [NAMES[k] for k in np.asarray(first["boxes"]["label"]).tolist()]
    assert labels == ["Cardiomegaly", "Infiltration"]
    ages = [float(rows[name]["age"]) for name in IMAGES[:4]]
    assert ages[::2] == [58.0, 58.0]
    assert np.isnan(ages[1::2]).all()
    assert (first["view_position"], first["sex"], first["subject_id"]) == ("PA", "M", "1")
    printed = capsys.readouterr().out
    assert "20 images (published: 25596), 10 patients" in printed
    assert "rows in the table 60 (published: 112120)" in printed
    report = check.check_dataset("nih_cxr14", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_random_split_is_by_patient(folder, built, tmp_path) -> None:
    found = built("nih_cxr14/random", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 42,
        "validation": 6,
        "test": 12,
    }
    patients = [{e["subject_id"] for e in rows.values()} for rows in found.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 30
    metadata = pipeline.open_source("nih_cxr14/random", "train", tmp_path / "out").metadata
    assert metadata["expected_counts"] == {"rows": 112120}
    by_option = built("nih_cxr14", folder, split="random", size="32", name="small")
    assert {s: sorted(rows) for s, rows in by_option.items()} == {
        s: sorted(rows) for s, rows in found.items()
    }


def test_errors_name_the_file(folder, built) -> None:
    (folder / "test_list.txt").write_text("\n".join(IMAGES[41:]))
    with pytest.raises(UserError, match=rf"{IMAGES[40]} is in neither of .*split=random"):
        built("nih_cxr14", folder)
    (folder / "test_list.txt").write_text("\n".join(IMAGES[39:]))
    with pytest.raises(UserError, match=rf"{IMAGES[39]} is in both of"):
        built("nih_cxr14", folder)
    (folder / "train_val_list.txt").write_text("\n".join(IMAGES[:39]))
    with pytest.raises(UserError, match=r"patient 20 is in .*train_val_list"):
        built("nih_cxr14", folder)
    (folder / "images_012" / "images" / IMAGES[-1]).unlink()
    with pytest.raises(UserError, match=rf"1 of 60 images .*{IMAGES[-1]}"):
        built("nih_cxr14/random", folder)
    (folder / "BBox_List_2017.csv").write_text(f"{BOXES}{IMAGES[0]},Gout,1,1,1,1,,,\n")
    with pytest.raises(UserError, match=r"BBox_List_2017\.csv line 2: Finding Label 'Gout'"):
        built("nih_cxr14", folder)
    (folder / "BBox_List_2017.csv").write_text(f"{BOXES}{IMAGES[0]},Mass,1,wide,1,1,,,\n")
    with pytest.raises(UserError, match="line 2: y is 'wide', expected a number"):
        built("nih_cxr14", folder)
    save_entries(folder, {IMAGES[1]: "Effusion|Gout"}, {})
    (folder / "BBox_List_2017.csv").write_text(BOXES)
    with pytest.raises(UserError, match=r"line 3: Finding Labels is 'Effusion\|Gout'"):
        built("nih_cxr14", folder)
    (folder / "BBox_List_2017.csv").unlink()
    with pytest.raises(UserError, match=r"missing BBox_List_2017\.csv .*nihcc"):
        built("nih_cxr14", folder)
