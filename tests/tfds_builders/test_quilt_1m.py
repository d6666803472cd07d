"""Without it a histology image could get another image's caption, or lose all captions but one."""

from __future__ import annotations

import math
import pathlib
import zipfile

import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

TABLE = "quilt_1M_lookup.csv"


def make_row(number: int, image: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "": number,  # the published table starts with a column without a name
        "caption": f'Dummy tissue, "numbered" {number}.',
        "image_path": f"video{image}_image_{image}.jpg",
        "subset": "quilt",
        "split": "train",
        "pathology": "['Renal', 'Dermatopathology']",
        "roi_text": "['first  text', '', 'second']",
        "noisy_text": "['dummie']",
        "corrected_text": "['dummy']",
        "med_umls_ids": "[[{'entity': 'tissue', 'cui': 'C0040300'}], ['C0040300', 'C0000001']]",
        "magnification": 2.0,
        "height": 30,
        "width": 40,
    }
    return {**row, **changes}


@pytest.fixture
def rows() -> list[dict[str, object]]:
    rows = [make_row(number, image=number // 2) for number in range(8)]
    rows[2].update(subset="pubmed", split="val", magnification="", roi_text="", pathology="Bone")
    rows[3].update(subset="pubmed", split="val", med_umls_ids="")
    rows[5].update(caption="")
    rows[7].update(subset="openpath", split="val", pathology="['open")
    return rows


@pytest.fixture
def folder(tmp_path, rows, save_image, save_table) -> pathlib.Path:
    """Images 0 and 1 packed in two archives, 2 and 3 unpacked in the folder of an archive."""
    folder = tmp_path / "quilt"
    save_table(folder / TABLE, rows)
    for image in range(4):
        name = f"video{image}_image_{image}.jpg"
        place = folder / "images_part_3" / "quilt_1m" / name
        save_image(place, 30, 40)
        if image < 2:
            with zipfile.ZipFile(folder / f"images_part_{image + 1}.zip", "w") as archive:
                archive.write(place, f"quilt_1m/{name}")
            place.unlink()
    return folder


def test_pairs_sources_and_split(folder, built, tmp_path, capsys) -> None:
    found = built("quilt_1m", folder)
    assert {split: sorted(rows) for split, rows in found.items()} == {
        "train": [
            "video0_image_0.jpg",
            "video0_image_0.jpg#2",
            "video2_image_2.jpg",
            "video3_image_3.jpg",
        ],
        "validation": ["video1_image_1.jpg", "video1_image_1.jpg#2", "video3_image_3.jpg#2"],
    }
    first, again = (found["train"][f"video0_image_0.jpg{n}"] for n in ("", "#2"))
    assert first["text"] == 'Dummy tissue, "numbered" 0.'
    assert again["text"] == 'Dummy tissue, "numbered" 1.'
    assert first["image"] == again["image"] != found["train"]["video2_image_2.jpg"]["image"]
    assert first["study_id"] == again["study_id"] == "video0_image_0.jpg"
    assert (first["pathology"], first["roi_text"]) == (
        "Renal; Dermatopathology",
        "first text; second",
    )
    assert first["cuis"] == ["C0040300", "C0000001"]
    assert first["magnification"] == 2.0
    other = found["validation"]["video1_image_1.jpg"]
    assert (other["subset"], other["pathology"], other["roi_text"]) == ("pubmed", "Bone", "")
    assert math.isnan(other["magnification"])
    assert found["validation"]["video1_image_1.jpg#2"]["cuis"] == []
    assert found["validation"]["video3_image_3.jpg#2"]["pathology"] == "['open"
    printed = capsys.readouterr().out
    assert "rows in the table 8" in printed
    assert "blank text: 1" in printed
    assert "rows by source: openpath 1, pubmed 2, quilt 5" in printed
    assert "images: 4" in printed
    assert "1 images have captions in more than one of the published splits" in printed
    problems = check.check_dataset("quilt_1m", str(tmp_path / "out")).problems
    assert "1 patients occur in both train and validation" in problems
    assert not any("splits/" in problem for problem in problems)


def test_subsets(folder, built, capsys) -> None:
    assert set(built("quilt_1m/quilt", folder)) == {"train"}
    assert "other subset: 3" in capsys.readouterr().out
    found = built("quilt_1m/no_pubmed", folder)
    assert sorted(found["validation"]) == ["video3_image_3.jpg#2"]


def test_wrong_files(folder, rows, built, save_table) -> None:
    (folder / "images_part_1.zip").unlink()
    with pytest.raises(UserError, match=r"2 of 5 images .*video0_image_0\.jpg.*zenodo"):
        built("quilt_1m", folder)
    assert len(built("quilt_1m", folder, missing_images="skip")["train"]) == 2
    rows[4]["split"] = "dev"
    save_table(folder / TABLE, rows)
    with pytest.raises(UserError, match=r"line 6: split is 'dev', expected train, val or test"):
        built("quilt_1m", folder, name="split")
    save_table(folder / TABLE, [{"image_path": "a.jpg", "caption": "x", "split": "train"}])
    with pytest.raises(UserError, match=r"has no column subset"):
        built("quilt_1m", folder, name="columns")
    save_table(folder / TABLE, rows[2:4])
    with pytest.raises(UserError, match=r"lists no image of the subset 'quilt'"):
        built("quilt_1m/quilt", folder, missing_images="skip", name="empty", subset="quilt")
    (folder / TABLE).rename(folder / "lookup.csv")
    with pytest.raises(UserError, match=r"missing quilt_1M_lookup\.csv"):
        built("quilt_1m", folder, name="layout")
