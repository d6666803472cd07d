"""Without it CheXpert could get wrong labels, views, splits or another patient's report."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

NAMES = load_spec("chexpert").label_names
PLUS_COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id",
    "patient_report_date_order", "report", "section_narrative", "section_clinical_history",
    "section_history", "section_comparison", "section_technique", "section_procedure_comments",
    "section_findings", "section_impression", "section_end_of_impression", "section_summary",
    "section_accession_number", "age", "sex", "race", "ethnicity", "interpreter_needed",
    "insurance_type", "recent_bmi", "deceased", "split",
)  # fmt: skip


def row(split: str, patient: int, view: str = "view1_frontal", **cells: str) -> dict[str, str]:
    """A row of train.csv or valid.csv."""
    frontal = "frontal" in view
    return {
        "Path": f"CheXpert-v1.0-small/{split}/patient{patient:05d}/study1/{view}.jpg",
        "Sex": "Female",
        "Age": "68",
        "Frontal/Lateral": "Frontal" if frontal else "Lateral",
        "AP/PA": "AP" if frontal else "",
        **dict.fromkeys(NAMES, ""),
        **cells,
    }


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "CheXpert-v1.0-small"
    train = [row("train", patient) for patient in range(1, 60)]
    train.append(row("train", 1, "view2_lateral", Sex="Unknown", Age=""))
    train[0].update({"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"})
    valid = [row("valid", patient, **dict.fromkeys(NAMES, "0.0")) for patient in (64541, 64542)]
    save_table(folder / "train.csv", train)
    save_table(folder / "valid.csv", valid)
    for cells in train + valid:
        save_image(tmp_path / cells["Path"], 20, 30)
    return folder


def test_official_split_labels_and_views(folder, built, tmp_path, capsys) -> None:
    found = built("chexpert", folder)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 60, "validation": 2}
    first = found["train"]["train/patient00001/study1/view1_frontal.jpg"]
    known = dict(zip(NAMES, first["label"].tolist(), strict=True))
    assert {k: v for k, v in known.items() if v != -2} == {
        "Edema": 1,
        "Pneumonia": -1,
        "Fracture": 0,
    }
    assert (first["view_position"], first["sex"], float(first["age"])) == ("AP", "F", 68.0)
    assert (first["subject_id"], first["study_id"]) == ("patient00001", "patient00001/study1")
    lateral = found["train"]["train/patient00001/study1/view2_lateral.jpg"]
    assert (lateral["view_position"], lateral["sex"]) == ("LATERAL", "")
    assert np.isnan(lateral["age"])
    assert first["text"] == ""
    assert all((e["label"] == 0).all() for e in found["validation"].values())
    assert "60 images (published: 223414), 59 patients" in capsys.readouterr().out
    report = check.check_dataset("chexpert", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_holdout_is_by_patient_and_the_same_from_above(folder, built, tmp_path) -> None:
    found = built("chexpert/holdout", folder)
    assert {split: len(rows) for split, rows in found.items() if split != "train"} == {
        "validation": 1,
        "test": 2,
    }
    assert len(found["train"]) == 59
    assert (tmp_path / "out" / "chexpert" / "holdout").is_dir()
    from_above = built("chexpert", tmp_path, split="holdout", name="above")
    assert {s: sorted(rows) for s, rows in from_above.items()} == {
        s: sorted(rows) for s, rows in found.items()
    }
    metadata = pipeline.open_source("chexpert/holdout", "train", tmp_path / "out").metadata
    assert metadata["expected_counts"] == {"test": 234}


def test_reports_of_chexpert_plus(folder, built, save_table) -> None:
    with pytest.raises(UserError, match=r"does not hold df_chexpert_plus_240401\.csv"):
        built("chexpert", folder, reports="require")
    plus = [
        {
            **dict.fromkeys(PLUS_COLUMNS, ""),
            "path_to_image": "train/patient00001/study1/view1_frontal.jpg",
            "report": "NARRATIVE: dummy FINDINGS: one IMPRESSION: two",
            "section_findings": "Dummy lungs are\nclear.",
            "section_impression": "1. Nothing invented.",
            "section_history": "Invented cough.",
        },
        {
            **dict.fromkeys(PLUS_COLUMNS, ""),
            "path_to_image": "valid/patient64541/study1/view1_frontal.png",
            "section_narrative": "An invented narrative.",
            "report": "whole",
        },
    ]
    save_table(folder / "df_chexpert_plus_240401.csv", plus)
    found = built("chexpert", folder)
    first = found["train"]["train/patient00001/study1/view1_frontal.jpg"]
    assert first["text"] == "FINDINGS: Dummy lungs are\nclear.\nIMPRESSION: 1. Nothing invented."
    assert first["indication"] == "Invented cough."
    expert = found["validation"]["valid/patient64541/study1/view1_frontal.jpg"]
    assert expert["text"] == "An invented narrative."
    assert found["train"]["train/patient00002/study1/view1_frontal.jpg"]["text"] == ""
    without = built("chexpert", folder, reports="none", name="without")
    assert not any(e["text"] for e in without["train"].values())
    save_table(folder / "df_chexpert_plus_240401.csv", [{**plus[0], "path_to_image": "x/y.jpg"}])
    with pytest.raises(UserError, match=r"no path_to_image is one of train\.csv"):
        built("chexpert", folder, name="other")
    save_table(folder / "df_chexpert_plus_241231.csv", plus)
    with pytest.raises(UserError, match="several tables of CheXpert Plus"):
        built("chexpert", folder, name="other")


def test_errors_name_the_file(folder, built, save_table, tmp_path) -> None:
    (folder / "train" / "patient00003" / "study1" / "view1_frontal.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 62 images .* train/patient00003/study1/view1_front"):
        built("chexpert", folder)
    wrong = {**row("train", 1), "Path": "patient00001/view1_frontal.jpg"}
    save_table(folder / "train.csv", [wrong])
    with pytest.raises(UserError, match=r"train\.csv line 2: Path is 'patient00001/view1"):
        built("chexpert", folder)
    save_table(folder / "train.csv", [row("train", 1, Age="old")])
    with pytest.raises(UserError, match=r"train\.csv line 2: Age is 'old', expected a number"):
        built("chexpert", folder)
    (folder / "valid.csv").unlink()
    with pytest.raises(UserError, match=r"missing valid\.csv or CheXpert-v1\.0-small/valid\.csv"):
        built("chexpert", folder)
