"""Without it questions of VQA-Med 2019 could lose their category, or answers the alternatives in them."""

from __future__ import annotations

import pathlib
import shutil
import zipfile

import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

TRAIN = "ImageClef-2019-VQA-Med-Training"
VALIDATION = "ImageClef-2019-VQA-Med-Validation"
TEST = "VQAMed2019Test"
ANSWERS = f"{TEST}/VQAMed2019_Test_Questions_w_Ref_Answers.txt"
CATEGORIES = ("C1_Modality", "C2_Plane", "C3_Organ", "C4_Abnormality")


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    """Three, two and two images; four questions each but in test."""
    folder = tmp_path / "med"
    for place, short, images, ids in (
        (TRAIN, "train", "Train_images", range(3)),
        (VALIDATION, "val", "Val_images", range(10, 12)),
    ):
        (folder / place / "QAPairsByCategory").mkdir(parents=True)
        for i in ids:
            save_image(folder / place / images / f"synpic{i}.jpg")
        for category in CATEGORIES:
            answer = "yes" if category == "C4_Abnormality" else "mr - t1w|fat sat"
            lines = [f"synpic{i}|what is {category.lower()} {i}?|{answer}" for i in ids]
            file = folder / place / "QAPairsByCategory" / f"{category}_{short}.txt"
            file.write_text("\n".join(lines) + "\n")
    for i in (20, 21):
        save_image(folder / TEST / "VQAMed2019_Test_Images" / f"synpic{i}.jpg")
    (folder / ANSWERS).write_text(
        "synpic20|abnormality|what is wrong?|(large) thing#mass of things\r\n"
        "synpic21|Plane|what plane?|axial\r\n"
    )
    return folder


def test_questions_keep_category_and_references(folder, built, tmp_path, capsys) -> None:
    found = built("vqa_med_2019", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 3,
        "validation": 2,
        "test": 2,
    }
    qa = found["train"]["synpic1"]["qa"]
    assert qa["question_type"] == ["modality", "plane", "organ", "abnormality"]
    assert qa["question"][2] == "what is c3_organ 1?"
    assert qa["answer"] == ["mr - t1w|fat sat"] * 3 + ["yes"]
    assert qa["answer_type"] == ["OPEN", "OPEN", "OPEN", "CLOSED"]
    assert qa["question_id"][3] == "train/abnormality/2"
    test = found["test"]["synpic20"]["qa"]
    assert test["answer"] == ["(large) thing"]
    assert test["reference"] == ["(large) thing#mass of things"]
    assert found["test"]["synpic21"]["qa"]["question_type"] == ["plane"]
    printed = capsys.readouterr().out
    assert "train 12 (published: 12792), validation 8 (published: 2000)" in printed
    assert "together 22 (published: 15292)" in printed
    report = check.check_dataset("vqa_med_2019", str(tmp_path / "out"))
    assert report.problems == (
        "train has 3 examples, published: 3200",
        "validation has 2 examples, published: 500",
        "test has 2 examples, published: 500",
    )


def test_test_images_may_stay_in_their_archive(folder, built) -> None:
    images = folder / TEST / "VQAMed2019_Test_Images"
    with zipfile.ZipFile(images.with_suffix(".zip"), "w") as archive:
        for file in images.iterdir():
            archive.write(file, f"VQAMed2019_Test_Images/{file.name}")
    before = built("vqa_med_2019", folder)["test"]
    shutil.rmtree(images)
    after = built("vqa_med_2019", folder, name="zipped")["test"]
    assert {k: e["image"] for k, e in before.items()} == {k: e["image"] for k, e in after.items()}


def test_errors_name_the_line(folder, built) -> None:
    text = (folder / ANSWERS).read_text()
    (folder / ANSWERS).write_text(text.replace("Plane", "Colour"))
    with pytest.raises(UserError, match="line 2: category is 'colour', expected modality, plane"):
        built("vqa_med_2019", folder)
    (folder / ANSWERS).write_text(text.replace("|axial", ""))
    with pytest.raises(UserError, match=r"line 2 has 3 cells between \|, expected 4"):
        built("vqa_med_2019", folder)
    (folder / ANSWERS).write_text(text)
    (folder / TRAIN / "Train_images/synpic2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images .*synpic2\.jpg"):
        built("vqa_med_2019", folder)
    (folder / TRAIN / "QAPairsByCategory/C2_Plane_train.txt").unlink()
    with pytest.raises(UserError, match=r"missing .*C2_Plane_train\.txt .*zenodo"):
        built("vqa_med_2019", folder)
