"""Without it MIMIC 5x200 could be taken from the test split, or leak into the pretraining that it tests."""

from __future__ import annotations

import gzip
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

NAMES = load_spec("mimic_cxr").label_names
CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
REPORT = " FINDINGS:\n\n Dummy {name}.\n\n IMPRESSION:\n\n Invented.\n"


@pytest.fixture
def make_folder(tmp_path, save_image, save_table):
    """`make_folder(n)`: n training patients of each class, one of the test split, a lateral view."""

    def make(count: int) -> pathlib.Path:
        folder = tmp_path / f"mimic{count}"
        metadata, splits, labels = [], [], []
        number = 0
        for name in CLASSES:
            for i in range(count + 1):
                number += 1
                subject, study, dicom = f"1{number:07d}", f"5{number:07d}", f"image-{number}"
                view = "LATERAL" if number == 1 else ("PA", "AP")[i % 2]
                split = "test" if i == count else "train"
                metadata.append(
                    {
                        "dicom_id": dicom,
                        "subject_id": subject,
                        "study_id": study,
                        "ViewPosition": view,
                        "StudyDate": "21800506",
                        "StudyTime": "213014.531",
                    }
                )
                splits.append(
                    {"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split}
                )
                blank = dict.fromkeys(NAMES, "")
                labels.append({"subject_id": subject, "study_id": study, **blank, name: "1.0"})
                place = f"p{subject[:2]}/p{subject}/s{study}"
                save_image(folder / "files" / place / f"{dicom}.jpg", 16, 16)
                report = folder / "mimic-cxr-reports" / "files" / f"{place}.txt"
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_text(REPORT.format(name=name))
        save_table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
        save_table(folder / "mimic-cxr-2.0.0-split.csv.gz", splits)
        save_table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
        return folder

    return make


def test_frontal_training_images_with_reports(make_folder, built) -> None:
    folder = make_folder(4)
    found = built("mimic_5x200", folder, per_class="3")["test"]
    np.testing.assert_array_equal(sum(e["label"] for e in found.values()), [3] * 5)
    assert "image-1" not in found  # lateral
    assert not {f"image-{n}" for n in (5, 10, 15, 20, 25)} & set(found)  # of the test split
    for example in found.values():
        name = CLASSES[int(example["label"].argmax())]
        assert example["findings"] == f"Dummy {name}."
    with pytest.raises(UserError, match="has 3 studies with Atelectasis alone, 4 are needed"):
        built("mimic_5x200", folder, per_class="4", name="larger")


def test_a_published_list_has_no_classes(make_folder, built, save_table, tmp_path) -> None:
    """BenchX's list: ids, and texts in place of paths and reports."""
    folder = make_folder(2)
    file = tmp_path / "mimic_5x200_ids.csv"
    rows = [
        {
            "Path": "path/of/images",
            "dicom_id": f"image-{n}",
            "Report": "Associated Report Goes Here.",
        }
        for n in (2, 6, 13)
    ]
    save_table(file, rows)
    labels = folder / "mimic-cxr-2.0.0-chexpert.csv.gz"
    text = gzip.decompress(labels.read_bytes()).decode().splitlines()
    text[2] = text[2].replace(",1.0,", ",1.0,1.0,", 1).replace(",,", ",", 1)  # a second class
    labels.write_bytes(gzip.compress("\n".join(text).encode()))
    found = built("mimic_5x200", folder, ids=str(file))["test"]
    assert {name: e["label"].tolist() for name, e in found.items()} == {
        "image-6": [0, 1, 0, 0, 0],  # of the official test split
        "image-13": [0, 0, 0, 0, 1],
    }
    metadata = pipeline.open_source("mimic_5x200", "test", tmp_path / "out").metadata
    assert metadata["dropped"] == {"listed_without_one_class": 1, "rejected": 0}


def test_only_chosen_reports_are_needed(make_folder, built, tmp_path) -> None:
    folder = make_folder(3)
    found = built("mimic_5x200", folder, per_class="2")["test"]
    reports = folder / "mimic-cxr-reports" / "files"
    chosen = {e["subject_id"]: e["study_id"] for e in found.values()}
    paths = {p.parent.name[1:]: p for p in reports.rglob("*.txt")}
    paths[next(s for s in paths if s not in chosen)].unlink()
    assert built("mimic_5x200", folder, per_class="2", name="second")["test"].keys() == found.keys()
    paths[next(iter(chosen))].unlink()
    with pytest.raises(UserError, match=r"1 of 10 reports .*mimic-cxr-reports\.zip"):
        built("mimic_5x200", folder, per_class="2", name="third")
    left = built("mimic_5x200", folder, per_class="2", name="fourth", missing_images="skip")
    assert len(left["test"]) == 9


def test_pretraining_leaves_their_patients_out(make_folder, built, tmp_path) -> None:
    folder = make_folder(202)
    test = built("mimic_5x200", folder)["test"]
    assert len(test) == 1_000
    found = built("mimic_cxr", folder, exclude_5x200="yes")
    # 202 of each class, but one view is lateral: 5 x 202 - 1000.
    assert len(found["train"]) == 10
    assert not {e["subject_id"] for e in found["train"].values()} & {
        e["subject_id"] for e in test.values()
    }
    assert len(found["test"]) == 5
    metadata = pipeline.open_source("mimic_cxr", "train", tmp_path / "out").metadata
    assert metadata["dropped"] == {"patient_of_5x200": 1_000, "rejected": 0}
    # The published numbers of the other splits still hold.
    assert metadata["expected_counts"] == {"validation": 2_991, "test": 5_159}
    labels = (folder / "mimic-cxr-2.0.0-chexpert.csv.gz").read_bytes()
    (folder / "mimic-cxr-2.0.0-negbio.csv.gz").write_bytes(labels)
    with pytest.raises(UserError, match="exclude_5x200=yes needs labeler=chexpert"):
        built("mimic_cxr", folder, exclude_5x200="yes", labeler="negbio", name="negbio")
