"""Without it a PadChest image could get another image's report, or a finding could be called absent
that nobody looked for."""

from __future__ import annotations

import math
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def make_row(number: int, patient: int, **changes: object) -> dict[str, object]:
    """One row with the published columns that matter and a few that do not."""
    row: dict[str, object] = {
        "": number,  # the published table starts with a column without a name
        "ImageID": f"{number}_dummy.png",
        "ImageDir": number % 2,
        "StudyDate_DICOM": 20140815,
        "StudyID": f"study{number // 2}",
        "PatientID": f"patient{patient}",
        "PatientBirth": "1940.0",
        "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": "POSTEROANTERIOR",
        "Projection": "PA",
        "PhotometricInterpretation_DICOM": "MONOCHROME2",
        "BitsStored_DICOM": 12,
        "ReportID": number,
        "Report": f" report invent numer {number} . sin hallazg . ",
        "MethodLabel": "RNN_model",
        "Labels": "['normal']",
        "Localizations": "[]",
        "LabelsLocalizationsBySentence": "[['normal']]",
        "labelCUIS": "[]",
        "LocalizationsCUIS": "[]",
    }
    return {**row, **changes}


@pytest.fixture
def rows() -> list[dict[str, object]]:
    rows = [make_row(number, patient=number // 3) for number in range(30)]
    rows[0].update(
        Labels="['pleural effusion', ' nodule', '']",
        Localizations="['loc  left', 'loc  basal, loc  pleural']",
        MethodLabel="Physician",
        labelCUIS="['C0032227' '' 'C0028259']",
        Projection="L",
    )
    rows[1].update(Labels="['unchanged', 'suboptimal study']", PatientBirth="")
    rows[2].update(Labels="", PatientBirth="1790")
    rows[3].update(Report="")
    rows[5].update(PhotometricInterpretation_DICOM="MONOCHROME1", PatientSex_DICOM="None")
    rows[6].update(PhotometricInterpretation_DICOM="MONOCHROME1", Labels="['Normal', 'Exclude']")
    return rows


@pytest.fixture
def folder(tmp_path, rows, save_table) -> pathlib.Path:
    """Archive 0 as downloaded (members with and without compression), archive 1 unpacked."""
    folder = tmp_path / "padchest"
    save_table(folder / f"{TABLE}.gz", rows)
    (folder / "1").mkdir()
    with zipfile.ZipFile(folder / "0.zip", "w") as archive:
        for number, row in enumerate(rows):
            data = png(number)
            if row["ImageDir"]:
                (folder / "1" / str(row["ImageID"])).write_bytes(data)
            else:
                packed = zipfile.ZIP_DEFLATED if number % 4 else zipfile.ZIP_STORED
                archive.writestr(f"0/{row['ImageID']}", data, packed)
    return folder


def png(number: int) -> bytes:
    """12-bit noise in a 16-bit PNG: upper edge black, lower one white, the width tells the number."""
    pixels = np.random.default_rng(number).integers(0, 4095, (40, 40 + number), np.uint16)
    pixels[0], pixels[-1] = 0, 4095
    return cv2.imencode(".png", pixels)[1].tobytes()


def pixels_of(example: dict) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def by_key(found: dict[str, dict[str, dict]]) -> dict[str, dict]:
    return {key: e for examples in found.values() for key, e in examples.items()}


def test_reports_labels_and_splits(folder, built, tmp_path, capsys) -> None:
    found = built("padchest", folder, size="0", quality="0")
    rows = by_key(found)
    assert len(rows) == 29
    first = rows["0_dummy.png"]
    assert first["text"] == "report invent numer 0 . sin hallazg ."
    assert first["labels"] == ["pleural effusion", "nodule"]
    assert first["localizations"] == ["loc left", "loc basal, loc pleural"]
    assert first["cuis"] == ["C0032227", "C0028259"]
    assert (first["view_position"], first["sex"], first["age"]) == ("L", "F", 74.0)
    assert (first["subject_id"], first["study_id"]) == ("patient0", "study0")
    assert first["label_method"] == "Physician"
    source = pipeline.open_source("padchest", "train", tmp_path / "out")
    assert tuple(source.label_names) == ("nodule", "normal", "pleural effusion")
    assert first["label"].tolist() == [1, 0, 1]
    assert rows["4_dummy.png"]["label"].tolist() == [0, 1, 0]
    for unknown in ("1_dummy.png", "2_dummy.png"):
        assert rows[unknown]["label"].tolist() == [-2, -2, -2]
        assert math.isnan(rows[unknown]["age"])
    for number in (0, 1, 2, 28, 29):  # packed and unpacked images are those of their rows
        image = pixels_of(rows[f"{number}_dummy.png"])
        assert image.shape == (40, 40 + number)
        assert image[0].max() == 0
        assert image[-1].min() == 255
    for number in (5, 6):  # MONOCHROME1: the upper edge is stored as 0 and shown in white
        image = pixels_of(rows[f"{number}_dummy.png"])
        assert image[0].min() == 255
        assert image[-1].max() == 0
    assert rows["5_dummy.png"]["sex"] == ""
    assert rows["6_dummy.png"]["labels"] == ["Normal", "Exclude"]
    assert rows["6_dummy.png"]["label"].tolist() == [0, 1, 0]
    split_of = {e["subject_id"]: set() for e in rows.values()}
    for split, examples in found.items():
        for example in examples.values():
            split_of[example["subject_id"]].add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "validation", "test"}
    printed = capsys.readouterr().out
    assert "rows in the table 30" in printed
    assert "blank text: 1" in printed
    assert check.check_dataset("padchest", str(tmp_path / "out")).problems == ()


def test_images_labelled_by_physicians(folder, built, tmp_path, capsys) -> None:
    found = built("padchest/physicians", folder)
    assert list(by_key(found)) == ["0_dummy.png"]
    assert "not labelled by physicians: 29" in capsys.readouterr().out
    (split,) = found
    source = pipeline.open_source("padchest/physicians", split, tmp_path / "out")
    assert tuple(source.label_names) == ("nodule", "normal", "pleural effusion")
    options = {"blank_text": "keep", "monochrome1": "keep", "size": "0", "quality": "0"}
    kept = by_key(built("padchest", folder, name="kept", **options))
    assert kept["3_dummy.png"]["text"] == ""
    assert pixels_of(kept["5_dummy.png"])[0].max() == 0


def test_missing_and_damaged_images(folder, built, tmp_path) -> None:
    (folder / "1" / "5_dummy.png").unlink()
    with pytest.raises(UserError, match=r"1 of 14 images .*1/5_dummy\.png.*bimcv"):
        built("padchest", folder)
    found = by_key(built("padchest", folder, missing_images="skip"))
    assert len(found) == 28
    packed = bytearray((folder / "0.zip").read_bytes())
    with zipfile.ZipFile(folder / "0.zip") as archive:
        packed[archive.getinfo("0/8_dummy.png").header_offset + 80] ^= 0xFF
    (folder / "0.zip").write_bytes(packed)
    found = built("padchest", folder, missing_images="skip", name="damaged", max_rejected="0.1")
    assert len(by_key(found)) == 27
    rejected = (tmp_path / "out" / "padchest" / "damaged" / "rejected.jsonl").read_text()
    assert "8_dummy.png" in rejected
    assert "is damaged in 0.zip" in rejected
    (folder / "0.zip").write_bytes(packed[:-30])
    with pytest.raises(UserError, match=r"0\.zip is not a complete zip file .*download it again"):
        built("padchest", folder, name="cut")


def test_wrong_tables(folder, rows, built, save_table) -> None:
    rows[6]["Labels"] = "nodule"
    save_table(folder / f"{TABLE}.gz", rows)
    with pytest.raises(UserError, match=r"line 8: Labels is 'nodule', expected a list like"):
        built("padchest", folder)
    save_table(
        folder / f"{TABLE}.gz", [{k: v for k, v in r.items() if k != "Report"} for r in rows]
    )
    with pytest.raises(UserError, match=r"has no column Report"):
        built("padchest", folder)
    (folder / f"{TABLE}.gz").unlink()
    with pytest.raises(UserError, match=r"missing PADCHEST_chest.*\.csv \(reports and labels"):
        built("padchest", folder)
