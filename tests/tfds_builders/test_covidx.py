"""Without it a COVIDx image could get another version's class, or a patient be in two parts unseen."""

from __future__ import annotations

import pathlib

import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

CLASSES = ("normal", "pneumonia", "COVID-19")


def make_line(number: int) -> str:
    """Twenty images of each class; two images of each patient of `ricord`."""
    if number % 3 == 2:
        return f"{number // 6} MIDRC-RICORD-1C-{number}-8.281-0.png COVID-19 ricord"
    return f"{number} {number}.png {CLASSES[number % 3]} rsna"


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "covidx"
    folder.mkdir()
    lines = [make_line(number) for number in range(60)]
    lines[0] = "0 a name with blanks(1).png normal rsna"
    tests = ["0 t0.png normal cohen", "9 t9.png COVID-19 ricord"]
    (folder / "train_COVIDx9A.txt").write_text("\n".join([*lines, lines[1]]) + "\n")
    (folder / "test_COVIDx9A.txt").write_text("\n".join(tests) + "\n")
    for part, rows in (("train", lines), ("test", tests)):
        for row in rows:
            name = " ".join(row.split()[1:-2])
            save_image(folder / part / name)
    return folder


def test_three_classes_and_validation_by_patient(folder, built, tmp_path, capsys) -> None:
    found = built("covidx/v9a", folder)
    assert sum(map(len, found.values())) == 62
    assert sorted(found["test"]) == ["test/t0.png", "test/t9.png"]
    assert 0 < len(found["validation"]) < 20
    rows = {**found["train"], **found["validation"]}
    source = pipeline.open_source("covidx/v9a", "train", tmp_path / "out")
    assert tuple(source.label_names) == CLASSES
    assert rows["train/a name with blanks(1).png"]["label"].tolist() == [1, 0, 0]
    assert rows["train/4.png"]["label"].tolist() == [0, 1, 0]
    other = rows["train/MIDRC-RICORD-1C-2-8.281-0.png"]
    assert other["label"].tolist() == [0, 0, 1]
    assert (other["class_name"], other["source"]) == ("COVID-19", "ricord")
    assert (other["subject_id"], other["text"]) == ("ricord:0", "")
    # Patient 0 of one collection is not patient 0 of another; those of one stay together.
    patients = [{e["subject_id"] for e in found[s].values()} for s in ("train", "validation")]
    assert not patients[0] & patients[1]
    printed = capsys.readouterr().out
    assert "rows in the table 63" in printed
    assert "listed again: 1" in printed
    assert "images by source: cohen 1, ricord 21, rsna 40" in printed
    assert "1 patients have images in more than one of the published splits" in printed
    problems = check.check_dataset("covidx/v9a", str(tmp_path / "out")).problems
    # Patient 9 of `ricord` is in the training list and in the test list.
    assert [p for p in problems if "images occur" not in p] == [
        "1 patients occur in both test and train"
    ]


def test_two_classes_with_a_published_validation_list(folder, built, save_image, capsys) -> None:
    for part, number in (("train", 3), ("val", 2), ("test", 1)):
        lines = [
            f"p{part}{i} {part}{i}.jpg {('negative', 'positive')[i % 2]} bimcv"
            for i in range(number)
        ]
        (folder / f"{part}.txt").write_text("\n".join(lines))
        for i in range(number):
            save_image(folder / "data" / part / f"{part}{i}.jpg")
    found = built("covidx", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 3,
        "validation": 2,
        "test": 1,
    }
    assert found["validation"]["val/val1.jpg"]["label"].tolist() == [0, 1]
    assert "rows in the table 6 (published: 84818)" in capsys.readouterr().out


def test_lists_without_a_source(folder, built, save_image) -> None:
    (folder / "labels").mkdir()
    for part in ("train", "test"):
        (folder / "labels" / f"{part}_COVIDx5.txt").write_text(f"7 old {part}.png pneumonia\n")
        save_image(folder / part / f"old {part}.png")
    (example,) = built("covidx/v5", folder)["test"].values()
    assert (example["subject_id"], example["label"].tolist()) == (":7", [0, 1, 0])


def test_wrong_lists(folder, built) -> None:
    (folder / "test" / "t9.png").unlink()
    with pytest.raises(UserError, match=r"1 of 62 images .*test/t9\.png.*kaggle"):
        built("covidx/v9a", folder)
    (folder / "test_COVIDx9A.txt").write_text("0 t0.png normal cohen\n9 t9.png positive ricord\n")
    with pytest.raises(UserError, match=r"test_COVIDx9A\.txt line 2 is '9 t9\.png positive"):
        built("covidx/v9a", folder)
    with pytest.raises(UserError, match=r"missing train\.txt or labels/train\.txt .*version cxr4"):
        built("covidx", folder)
    for part in ("train", "test"):
        (folder / f"{part}_COVIDx9A.txt").write_text("\n")
    with pytest.raises(UserError, match=r"the lists of version v9a in .* are empty"):
        built("covidx/v9a", folder)
