"""Without it MIMIC-CXR could get wrong splits, labels, sections or prior studies."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import build, check, pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

NAMES = load_spec("mimic_cxr").label_names
# subject, study, dicom, view, date, time, split; the second patient's later study comes first.
IMAGES = (
    ("10000032", "50000001", "aa-01", "PA", "21800506", "213014.531", "train"),
    ("10000032", "50000001", "aa-02", "LATERAL", "21800506", "213014.531", "train"),
    ("10000032", "50000002", "aa-03", "AP", "21800506", "093000", "train"),
    ("10000032", "50000003", "aa-04", "", "21810506", "", "train"),
    ("11000001", "50000004", "bb-01", "AP", "21900101", "1.5", "validate"),
    ("19000001", "50000005", "cc-01", "PA", "21950101", "120000", "test"),
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  Chest, two views.

 INDICATION:  ___-year-old with cough.

 COMPARISON:  None.

 FINDINGS:

 The dummy lungs are clear.  No invented effusion
 is seen.

 IMPRESSION:

 No invented disease in study {study}.
"""


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "mimic"
    metadata, splits, labels = [], [], {}
    for subject, study, dicom, view, date, time, split in IMAGES:
        metadata.append(
            {
                "dicom_id": dicom,
                "subject_id": subject,
                "study_id": study,
                "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
                "ViewPosition": view,
                "Rows": 40,
                "Columns": 50,
                "StudyDate": date,
                "StudyTime": time,
                "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
                "ViewCodeSequence_CodeMeaning": "postero-anterior",
                "PatientOrientationCodeSequence_CodeMeaning": "Erect",
            }
        )
        splits.append({"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split})
        labels[study] = {"subject_id": subject, "study_id": study, **dict.fromkeys(NAMES, "")}
        place = f"p{subject[:2]}/p{subject}/s{study}"
        save_image(folder / "files" / place / f"{dicom}.jpg")
        report = folder / "mimic-cxr-reports" / "files" / f"{place}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(REPORT.format(study=study))
    labels["50000001"].update({"Edema": "1.0", "Pneumonia": "-1.0", "No Finding": "0.0"})
    del labels["50000005"]
    save_table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    save_table(folder / "mimic-cxr-2.0.0-split.csv.gz", splits)
    save_table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", list(labels.values()))
    return folder


def labels_of(example: dict) -> dict[str, int]:
    """Only what is known."""
    known = zip(NAMES, example["label"].tolist(), strict=True)
    return {name: value for name, value in known if value != -2}


def test_rows_labels_sections_and_prior_studies(folder, built, capsys) -> None:
    found = built("mimic_cxr", folder)
    assert {split: sorted(rows) for split, rows in found.items()} == {
        "train": ["aa-01", "aa-02", "aa-03", "aa-04"],
        "validation": ["bb-01"],
        "test": ["cc-01"],
    }
    first = found["train"]["aa-01"]
    assert labels_of(first) == {"Edema": 1, "Pneumonia": -1, "No Finding": 0}
    assert labels_of(found["train"]["aa-03"]) == {}
    assert labels_of(found["test"]["cc-01"]) == {}
    assert first["findings"] == "The dummy lungs are clear. No invented effusion is seen."
    assert first["impression"] == "No invented disease in study 50000001."
    assert first["text"] == f"FINDINGS: {first['findings']}\nIMPRESSION: {first['impression']}"
    assert first["indication"] == "___-year-old with cough."
    assert first["comparison"] == "None."
    assert (first["subject_id"], first["study_id"]) == ("10000032", "50000001")
    views = {key: e["view_position"] for key, e in found["train"].items()}
    assert views == {"aa-01": "PA", "aa-02": "LATERAL", "aa-03": "AP", "aa-04": ""}
    # The study at 9:30 comes before that at 21:30 of the same day, whose number is lower.
    prior = {e["study_id"]: (e["prior_study_id"], int(e["days"])) for e in found["train"].values()}
    assert prior == {
        "50000002": ("", 0),
        "50000001": ("50000002", 0),
        "50000003": ("50000001", 365),
    }
    printed = capsys.readouterr().out
    assert "4 images (published: 368960), 1 patients" in printed
    assert "5159" in printed


def test_metadata_and_check(folder, built, tmp_path) -> None:
    built("mimic_cxr", folder)
    source = pipeline.open_source("mimic_cxr", "train", tmp_path / "out")
    assert source.label_names == NAMES
    assert len(source.metadata["split_hash"]) == 64
    assert "credentialed" in source.metadata["access"]
    report = check.check_dataset("mimic_cxr", str(tmp_path / "out"))
    assert [p for p in report.problems if "published" not in p] == []
    assert "train has 4 examples, published: 368960" in report.problems


def test_report_without_sections_gives_its_last_paragraph(folder, built) -> None:
    report = folder / "mimic-cxr-reports/files/p19/p19000001/s50000005.txt"
    report.write_text("  FINAL REPORT\n Dummy chest.\n\n Lungs of nobody\n are clear.\n\n")
    example = built("mimic_cxr", folder)["test"]["cc-01"]
    assert example["text"] == "Lungs of nobody are clear."
    assert (example["findings"], example["impression"]) == ("", "")


def test_missing_tables_and_reports_are_named(folder, built, tmp_path) -> None:
    table = folder / "mimic-cxr-2.0.0-split.csv.gz"
    content = table.read_bytes()
    table.unlink()
    with pytest.raises(UserError, match=r"missing mimic-cxr-2\.0\.0-split\.csv\.gz .*physionet"):
        built("mimic_cxr", folder)
    (folder / "mimic-cxr-2.0.0-split.csv").write_bytes(gzip.decompress(content))  # unpacked is fine
    with pytest.raises(UserError, match=rf"give --manual-dir {folder}"):
        built("mimic_cxr", folder / "files")
    (folder / "mimic-cxr-reports/files/p11/p11000001/s50000004.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 5 reports .* p11/p11000001/s50000004\.txt"):
        built("mimic_cxr", folder)
    (folder / "mimic-cxr-reports").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"unzip mimic-cxr-reports\.zip"):
        built("mimic_cxr", folder)
    with pytest.raises(UserError, match="is not a folder"):
        built("mimic_cxr", tmp_path / "nowhere")


def test_partial_download(folder, built, tmp_path) -> None:
    (folder / "files/p10/p10000032/s50000001/aa-02.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images .*aa-02\.jpg.*missing_images=skip"):
        built("mimic_cxr", folder)
    (folder / "mimic-cxr-reports/files/p11/p11000001/s50000004.txt").unlink()
    found = built("mimic_cxr", folder, missing_images="skip")
    assert sorted(found["train"]) == ["aa-01", "aa-03", "aa-04"]
    assert "validation" not in found
    metadata = pipeline.open_source("mimic_cxr", "train", tmp_path / "out").metadata
    assert metadata["dropped"] == {"missing_report": 1, "missing_image": 1, "rejected": 0}
    report = check.check_dataset("mimic_cxr", str(tmp_path / "out"))
    assert not any("build it again" in problem for problem in report.problems)


def test_damaged_image_is_listed(folder, built, tmp_path) -> None:
    (folder / "files/p10/p10000032/s50000001/aa-02.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="max_rejected"):
        built("mimic_cxr", folder)
    found = built("mimic_cxr", folder, max_rejected="0.5")
    assert "aa-02" not in found["train"]
    listed = (tmp_path / "out/mimic_cxr/default/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == ["aa-02"]


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("split", "validate", "holdout", r"split\.csv\.gz line 6: split is 'holdout'"),
        ("split", "bb-01", "xx-01", "does not list dicom_id bb-01"),
        ("chexpert", "-1.0", "maybe", r"line 2: Pneumonia is 'maybe'"),
        ("chexpert", "Edema", "Oedema", "has no column Edema"),
        ("metadata", "21800506", "1980-05", "line 2: StudyDate is '1980-05', expected YYYYMMDD"),
        ("metadata", "aa-02", "aa-01", "lists aa-01 twice"),
    ],
)
def test_wrong_tables_are_explained(folder, built, table, old, new, message) -> None:
    file = folder / f"mimic-cxr-2.0.0-{table}.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    assert old in text
    file.write_bytes(gzip.compress(text.replace(old, new).encode()))
    with pytest.raises(UserError, match=message):
        built("mimic_cxr", folder)


def test_patient_in_two_splits_stops(folder, built) -> None:
    file = folder / "mimic-cxr-2.0.0-split.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    changed = text.replace("aa-04,50000003,10000032,train", "aa-04,50000003,10000032,test")
    file.write_bytes(gzip.compress(changed.encode()))
    with pytest.raises(UserError, match="subject 10000032 is in train and in test"):
        built("mimic_cxr", folder)


def test_options(folder, built, save_table, tmp_path) -> None:
    with pytest.raises(UserError, match=r"labeler='chexbert': expected chexpert or negbio"):
        built("mimic_cxr", folder, labeler="chexbert")
    with pytest.raises(
        UserError, match=r"option 'sise' is unknown; there are equalise, exclude, .*labeler"
    ):
        built("mimic_cxr", folder, sise="3")
    with pytest.raises(UserError, match="size='-3': expected a value like 256"):
        built("mimic_cxr", folder, size="-3")
    with pytest.raises(UserError, match=r"missing mimic-cxr-2\.0\.0-negbio\.csv\.gz"):
        built("mimic_cxr", folder, labeler="negbio")
    row = {"subject_id": "1", "study_id": "50000001", **dict.fromkeys(NAMES, "1")}
    save_table(folder / "mimic-cxr-2.0.0-negbio.csv.gz", [row])
    found = built("mimic_cxr", folder, labeler="negbio", name="negbio", size="32", quality="0")
    example = found["train"]["aa-01"]
    assert set(labels_of(example).values()) == {1}
    assert example["image"][:4] == b"\x89PNG"
    assert int(np.frombuffer(example["image"][16:24], ">u4").min()) == 32


def test_patients_of_a_benchmark_are_left_out(folder, built, save_table, tmp_path) -> None:
    """MS-CXR-T writes paths without suffix into dicom_id, MS-CXR and Chest ImaGenome the id alone."""
    file = tmp_path / "benchmark.csv"
    save_table(file, [{"dicom_id": "p10/p10000032/s50000001/aa-01"}, {"dicom_id": "bb-01"}])
    found = built("mimic_cxr", folder, exclude=str(file))
    assert {split: set(rows) for split, rows in found.items()} == {"test": {"cc-01"}}
    metadata = pipeline.open_source("mimic_cxr", "test", tmp_path / "out").metadata
    assert metadata["dropped"] == {"excluded_patient": 5, "rejected": 0}
    assert metadata["expected_counts"] == {"test": 5_159}


def test_built_once_and_changes_are_noticed(folder, built, tmp_path) -> None:
    built("mimic_cxr", folder)
    out = tmp_path / "out"
    assert build.build_dataset("mimic_cxr", out, manual_dir=folder).is_dir()
    with pytest.raises(UserError, match=r"size \(was 256, now 64\)"):
        build.build_dataset("mimic_cxr", out, manual_dir=folder, options={"size": "64"})
    file = folder / "mimic-cxr-2.0.0-chexpert.csv.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b",1.0,", b",0.0,")))
    with pytest.raises(UserError, match="tables have changed"):
        build.build_dataset("mimic_cxr", out, manual_dir=folder)
    build.build_dataset("mimic_cxr/second", out, manual_dir=folder, options={"size": "64"})
    assert (out / "mimic_cxr" / "second").is_dir()


def test_training_reads_it(folder, built, tmp_path) -> None:
    built("mimic_cxr", folder)
    config = {
        "dataset": "mimic_cxr",
        "data_dir": str(tmp_path / "out"),
        "global_batch_size": 4,
        "image": {"size": 32, "channels": 1, "mean": (0.5,), "std": (0.5,)},
        "text": {"vocab_size": 100, "max_length": 16, "sample": "impression"},
        "threads": 0,
    }
    tokenizer = pipeline.config_tokenizer(config)
    iterator = pipeline.train_iterator(config, tokenizer, seed=0)
    batch = next(iterator)
    assert batch["image"].shape == (4, 32, 32, 1)
    assert batch["label"].shape == batch["label_mask"].shape == (4, len(NAMES))
    assert len(set(batch["text_id"].tolist())) == 3  # three studies of one patient
    assert len(set(batch["subject_id"].tolist())) == 1
