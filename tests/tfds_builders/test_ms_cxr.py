"""Without it a box could be given to another phrase, or scaled by the size of a smaller copy of the image."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

IMAGES = {
    "aa-01": "files/p10/p10000032/s50000001/aa-01.jpg",
    "aa-02": "files/p10/p10000032/s50000002/aa-02.jpg",
    "bb-01": "files/p11/p11000001/s50000004/bb-01.jpg",
}
# dicom, category, phrase, x, y, w, h, split; the table counts in pixels of 500 x 400.
ROWS = (
    ("aa-01", "Pneumonia", "Dummy bibasilar opacities", 100, 200, 200, 100, "train"),
    ("aa-01", "Pneumonia", "Dummy bibasilar opacities", 300, 200, 100, 100, "train"),
    ("aa-01", "Lung Opacity", "invented opacity, left", 0, 0, 250, 400, "train"),
    ("aa-02", "Cardiomegaly", "Dummy heart is large", 50, 40, 50, 40, "val"),
    ("bb-01", "Pneumothorax", "Invented pneumothorax", 250, 0, 250, 200, "test"),
)


def table_row(row: tuple, version: str) -> dict[str, object]:
    dicom, category, phrase, x, y, w, h, split = row
    cells = {
        "dicom_id": dicom,
        "category_name": category,
        "label_text": phrase,
        "path": IMAGES[dicom],
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "image_width": 500,
        "image_height": 400,
    }
    return {**cells, **({"split": split} if version == "v1.1.0" else {})}


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "mimic"
    rows = [table_row(row, "v1.1.0") for row in ROWS]
    save_table(folder / "MS_CXR_Local_Alignment_v1.1.0.csv", rows)
    for path in IMAGES.values():
        save_image(folder / path, 40, 50)  # a tenth of the published size
    return folder


def save_json(folder: pathlib.Path) -> None:
    names = sorted({row[1] for row in ROWS})
    content = {
        "info": {"version": "v1.0.0"},
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
        "images": [
            {"id": k, "file_name": f"{d}.jpg", "path": path, "width": 500, "height": 400}
            for k, (d, path) in enumerate(IMAGES.items(), start=1)
        ],
        "annotations": [
            {
                "id": k,
                "image_id": list(IMAGES).index(row[0]) + 1,
                "category_id": names.index(row[1]) + 1,
                "label_text": row[2],
                "bbox": list(row[3:7]),
                "height": 400,
                "width": 500,
            }
            for k, row in enumerate(ROWS, start=1)
        ],
    }
    (folder / "MS_CXR_Local_Alignment_v1.0.0.json").write_text(json.dumps(content))


def check_first(example: dict) -> None:
    assert list(example["phrases"]["phrase"]) == [
        "Dummy bibasilar opacities",
        "invented opacity, left",
    ]
    assert list(example["phrases"]["category"]) == ["Pneumonia", "Lung Opacity"]
    boxes = example["boxes"]
    assert np.asarray(boxes["phrase"]).tolist() == [0, 0, 1]
    assert np.asarray(boxes["label"]).tolist() == [6, 6, 4]
    np.testing.assert_allclose(
        boxes["bbox"],
        [[0.5, 0.2, 0.75, 0.6], [0.5, 0.6, 0.75, 0.8], [0.0, 0.0, 1.0, 0.5]],
        atol=1e-6,
    )
    assert example["label"].tolist() == [-2, -2, -2, -2, 1, -2, 1, -2]
    assert (example["subject_id"], example["study_id"]) == ("10000032", "50000001")


def test_phrases_and_boxes_per_image(folder, built, tmp_path, capsys) -> None:
    found = built("ms_cxr", folder)
    assert {s: set(rows) for s, rows in found.items()} == {"test": set(IMAGES)}
    check_first(found["test"]["aa-01"])
    assert found["test"]["aa-01"]["text"] == "Dummy bibasilar opacities\ninvented opacity, left"
    printed = capsys.readouterr().out
    assert "pairs of image and phrase: 4 (published: 1162)" in printed
    assert "--option exclude=FILE" in printed
    assert check.check_dataset("ms_cxr/all", str(tmp_path / "out")).ok


def test_published_split(folder, built, save_table) -> None:
    file = folder / "MS_CXR_Local_Alignment_v1.1.0.csv"
    one_patient = file.read_text().replace("p10000032/s50000002", "p10000033/s50000002")
    (folder / "files/p10/p10000032/s50000002").rename(folder / "files/p10/s50000002")
    (folder / "files/p10/p10000033").mkdir()
    (folder / "files/p10/s50000002").rename(folder / "files/p10/p10000033/s50000002")
    file.write_text(one_patient)
    found = built("ms_cxr/published", folder)
    assert {s: set(rows) for s, rows in found.items()} == {
        "train": {"aa-01"},
        "validation": {"aa-02"},
        "test": {"bb-01"},
    }
    file.write_text(re.sub("invented opacity(.*),train", r"invented opacity\1,test", one_patient))
    with pytest.raises(UserError, match="split of aa-01 is test, train, expected one of train"):
        built("ms_cxr", folder, split="published", name="mixed")
    file.unlink()
    rows = [table_row(row, "v1.0.0") for row in ROWS]
    save_table(folder / "ms-cxr" / "MS_CXR_Local_Alignment_v1.0.0.csv", rows)
    with pytest.raises(UserError, match="take --option split=all"):
        built("ms_cxr", folder, split="published", name="old")


def test_coco_file_gives_the_same(folder, built) -> None:
    (folder / "MS_CXR_Local_Alignment_v1.1.0.csv").unlink()
    save_json(folder)
    found = built("ms_cxr", folder)["test"]
    assert set(found) == set(IMAGES)
    check_first(found["aa-01"])
    file = folder / "MS_CXR_Local_Alignment_v1.0.0.json"
    file.write_text(file.read_text().replace('"image_id": 3', '"image_id": 9'))
    with pytest.raises(UserError, match="annotations entry 5: image 9 is not listed"):
        built("ms_cxr", folder, name="other")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Pneumothorax", "Fracture", r"line 6: 'Fracture' is not one of Atelectasis"),
        ("files/p11/", "images/", r"line 6: 'images/p11000001/s50000004/bb-01\.jpg' is no path of"),
        (",250,0,250,", ",left,0,250,", "line 6: x is 'left', expected a number"),
        ("label_text", "text", "has no column label_text"),
    ],
)
def test_wrong_tables_are_explained(folder, built, old, new, message) -> None:
    file = folder / "MS_CXR_Local_Alignment_v1.1.0.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        built("ms_cxr", folder)


def test_a_box_outside_is_rejected_and_missing_files_named(folder, built, tmp_path) -> None:
    file = folder / "MS_CXR_Local_Alignment_v1.1.0.csv"
    text = file.read_text()
    file.write_text(text.replace(",250,0,250,200,", ",600,0,250,200,"))
    found = built("ms_cxr", folder, max_rejected="0.5")
    assert set(found["test"]) == {"aa-01", "aa-02"}
    assert "box x=600" in (tmp_path / "out/ms_cxr/all/rejected.jsonl").read_text()
    (folder / IMAGES["bb-01"]).unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .*bb-01\.jpg"):
        built("ms_cxr", folder, name="second")
    file.unlink()
    with pytest.raises(
        UserError, match=r"missing MS_CXR_Local_Alignment_v1\.1\.0\.csv .*physionet"
    ):
        built("ms_cxr", folder, name="third")
