"""Without it radiologists' votes could be counted wrongly, or boxes of two findings melt into one."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError
from tfds_builders.vindr_cxr.votes import (
    DrawnBox,
    intersection_over_union,
    merge_boxes,
    merge_labels,
)

NAMES = load_spec("vindr_cxr").label_names
TRAIN = tuple(f"{n:032x}" for n in range(20))
TEST = ("f" * 32, "e" * 32)
HEART = NAMES.index("Cardiomegaly")


def labels(name: str, reader: str, **cells: object) -> dict[str, object]:
    """A row of image_labels_train.csv, whose last disease is called otherwise than in the test table."""
    row: dict[str, object] = {"image_id": name, "rad_id": reader}
    row.update({n if n != "Other disease" else "Other diseases": 0 for n in NAMES})
    return {**row, **cells}


def box(name: str, reader: str, finding: str, *edges: object) -> dict[str, object]:
    left, top, right, bottom = edges or ("", "", "", "")
    return {
        "image_id": name,
        "rad_id": reader,
        "class_name": finding,
        "x_min": left,
        "y_min": top,
        "x_max": right,
        "y_max": bottom,
    }


@pytest.fixture
def folder(tmp_path, save_dicom, save_table) -> pathlib.Path:
    folder = tmp_path / "vindr"
    rows = [labels(name, f"R{r}", **{"No finding": 1}) for name in TRAIN for r in (8, 9, 10)]
    for reader in (0, 1):
        rows[reader].update({"Cardiomegaly": 1, "No finding": 0})
    rows[2]["Other diseases"] = "1.0"
    rows[3]["Edema"] = ""
    boxes = [
        box(TRAIN[0], "R8", "Cardiomegaly", 10, 20, 30, 40),
        box(TRAIN[0], "R9", "Cardiomegaly", 14, 20, 34, 40),
        box(TRAIN[0], "R9", "Atelectasis", 10, 20, 30, 40),
        box(TRAIN[0], "R10", "No finding"),
        *(box(name, "R8", "No finding") for name in TRAIN[1:]),
    ]
    tests = [labels(name, "") for name in TEST]
    for row in tests:
        del row["rad_id"]
        row["Other disease"] = row.pop("Other diseases")
    tests[0]["Pleural effusion"] = tests[1]["Other disease"] = 1
    consensus = [box(TEST[0], "", "Pleural effusion", 0, 0, 25, 40), box(TEST[1], "", "No finding")]
    for row in consensus:
        del row["rad_id"]
    save_table(folder / "annotations" / "image_labels_train.csv", rows)
    save_table(folder / "annotations" / "image_labels_test.csv", tests)
    save_table(folder / "annotations" / "annotations_train.csv", boxes)
    save_table(folder / "annotations" / "annotations_test.csv", consensus)
    for split, names in (("train", TRAIN), ("test", TEST)):
        for name in names:
            save_dicom(folder / split / f"{name}.dicom", 40, 50)
    return folder


def positive(example: dict) -> list[str]:
    return [name for name, v in zip(NAMES, example["label"].tolist(), strict=True) if v == 1]


def test_majority_of_labels_and_boxes(folder, built, tmp_path, capsys) -> None:
    found = built("vindr_cxr", folder)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "test": 2}
    first = found["train"][TRAIN[0]]
    assert positive(first) == ["Cardiomegaly"]
    # The mean of two boxes; the atelectasis of one radiologist alone is left out.
    np.testing.assert_allclose(first["boxes"]["bbox"], [[0.5, 0.24, 1.0, 0.64]], atol=1e-6)
    assert np.asarray(first["boxes"]["label"]).tolist() == [HEART]
    assert list(first["box_radiologists"]) == ["R8 R9"]
    assert first["view_position"] == "PA"
    assert positive(found["train"][TRAIN[1]]) == ["No finding"]
    assert len(found["train"][TRAIN[1]]["boxes"]["bbox"]) == 0
    effusion, other = found["test"][TEST[0]], found["test"][TEST[1]]
    assert (positive(effusion), positive(other)) == (["Pleural effusion"], ["Other disease"])
    np.testing.assert_allclose(effusion["boxes"]["bbox"], [[0, 0, 1, 0.5]], atol=1e-6)
    assert list(effusion["box_radiologists"]) == [""]
    assert "20 images (published: 15000)" in capsys.readouterr().out
    report = check.check_dataset("vindr_cxr/official", str(tmp_path / "out"))
    assert all("published" in problem for problem in report.problems)


def test_other_rules_and_boxes_as_drawn(folder, built) -> None:
    either = built("vindr_cxr", folder, merge="any", name="any")["train"][TRAIN[0]]
    assert positive(either) == ["Cardiomegaly", "Other disease", "No finding"]
    assert list(either["box_radiologists"]) == ["R8 R9", "R9"]
    unsure = built("vindr_cxr", folder, merge="uncertain", name="unsure")["train"][TRAIN[0]]
    known = dict(zip(NAMES, unsure["label"].tolist(), strict=True))
    assert known["Cardiomegaly"] == known["Other disease"] == -1
    assert known["Edema"] == 0
    drawn = built("vindr_cxr", folder, boxes="drawn", name="drawn")["train"][TRAIN[0]]
    assert list(drawn["box_radiologists"]) == ["R8", "R9", "R9"]
    np.testing.assert_allclose(drawn["boxes"]["bbox"][0], [0.5, 0.2, 1.0, 0.6], atol=1e-6)


def test_holdout_takes_a_tenth(folder, built) -> None:
    found = built("vindr_cxr/holdout", folder)
    assert {s: len(rows) for s, rows in found.items()} == {"train": 18, "validation": 2, "test": 2}


def test_rules_of_votes() -> None:
    votes = np.asarray([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], np.int8)
    assert merge_labels(votes, "majority").tolist() == [1, 1, 0, 0]
    assert merge_labels(votes, "any").tolist() == [1, 1, 1, 0]
    assert merge_labels(votes, "all").tolist() == [1, 0, 0, 0]
    assert merge_labels(votes, "uncertain").tolist() == [1, -1, -1, 0]


def test_one_radiologist_never_merges_with_himself() -> None:
    boxes = [DrawnBox(0, (0, 0, 10, 10), ("A",)), DrawnBox(0, (0, 0, 10, 9), ("A",))]
    assert merge_boxes(boxes, 3, "any") == boxes
    assert merge_boxes(boxes, 3, "majority") == []
    far = DrawnBox(0, (20, 0, 30, 10), ("B",))
    assert [b.readers for b in merge_boxes([*boxes, far], 3, "any")] == [("A",), ("A",), ("B",)]
    assert intersection_over_union((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert intersection_over_union((0, 0, 1, 1), (2, 0, 3, 1)) == 0.0


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "image_labels_train",
            ",1.0,",
            ",2,",
            r"train\.csv line 4: Other disease is '2', expected 0",
        ),
        ("image_labels_train", "Edema", "Oedema", "has no column Edema; take"),
        ("image_labels_train", "R9", "R8", r"line 3: 0{32} R8 is listed twice"),
        ("annotations_train", "Atelectasis", "Collapse", "class_name is 'Collapse', which is no"),
        ("annotations_train", "14,20", "left,20", "line 3: x_min is 'left', expected a number"),
        ("annotations_test", "f" * 32, "a" * 32, "boxes of a{32}, which image_labels_test"),
    ],
)
def test_wrong_tables_are_explained(folder, built, table, old, new, message) -> None:
    file = folder / "annotations" / f"{table}.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        built("vindr_cxr", folder)


def test_a_box_without_area_is_rejected_not_stored(folder, built, tmp_path) -> None:
    file = folder / "annotations" / "annotations_test.csv"
    file.write_text(file.read_text().replace("25,40", "0,40"))
    found = built("vindr_cxr", folder, max_rejected="0.5")
    assert set(found["test"]) == {TEST[1]}
    assert "box x=0 y=0 w=0" in (tmp_path / "out/vindr_cxr/official/rejected.jsonl").read_text()
    assert intersection_over_union((0, 0, 0, 5), (0, 0, 0, 5)) == 0.0


def test_missing_files_are_named(folder, built) -> None:
    (folder / "test" / f"{TEST[0]}.dicom").unlink()
    with pytest.raises(UserError, match=r"1 of 22 images .*f{32}\.dicom"):
        built("vindr_cxr", folder)
    (folder / "annotations" / "annotations_test.csv").unlink()
    with pytest.raises(UserError, match=r"missing annotations/annotations_test\.csv .*physionet"):
        built("vindr_cxr", folder)
