"""Without it the right choice of a PMC-VQA question could be another one after the build."""

from __future__ import annotations

import pathlib
import shutil
import zipfile

import pytest

from medvlp_jax.errors import UserError
from tfds_builders.pmc_vqa.pmc_vqa import PmcVqa


def row(figure: int, number: int, **changes: str) -> dict[str, str]:
    """One row with the columns of train.csv."""
    return {
        "Figure_path": f"PMC{figure}_F1.jpg",
        "Question": f"What is thing {number}?",
        "Answer": "Focal uptake",
        "Choice A": " A:Diffuse uptake ",
        "Choice B": "B: Focal uptake",
        "Choice C": "C:No uptake: none",
        "Choice D": "D:Cannot be determined",
        "Answer_label": "B",
        **changes,
    }


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    """Three figures of release 1 in its archive and one of release 2 in a folder."""
    folder = tmp_path / "pmc"
    for i in range(3):
        save_image(folder / "images" / f"PMC{i}_F1.jpg")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for file in sorted((folder / "images").iterdir()):
            archive.write(file, f"images/{file.name}")
    shutil.rmtree(folder / "images")
    save_table(folder / "train.csv", [row(0, 1), row(0, 2, Answer_label="C"), row(1, 3)])
    save_table(folder / "test.csv", [row(1, 4), row(2, 5)])
    save_table(folder / "test_clean.csv", [row(2, 5)])
    save_image(folder / "images_2" / "PMC9_F1.jpg")
    second = row(9, 6, Caption="Uptake of the breast.")
    second["Answer"] = second.pop("Answer_label")
    save_table(folder / "train_2.csv", [second])
    save_table(folder / "test_2.csv", [{**second, "Answer": "No uptake: none"}])
    return folder


def test_choices_and_answers(folder, built, capsys) -> None:
    found = built("pmc_vqa", folder)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "test": 2}
    qa = found["train"]["PMC0_F1.jpg"]["qa"]
    assert qa["question"] == ["What is thing 1?", "What is thing 2?"]
    assert qa["answer"] == ["Focal uptake", "No uptake: none"]
    assert qa["answer_label"] == ["B", "C"]
    assert qa["choice_a"][0] == "Diffuse uptake"
    assert qa["choice_d"][1] == "Cannot be determined"
    assert qa["question_id"] == ["train/2", "train/3"]
    printed = capsys.readouterr().out
    assert "pmc_vqa/v1" in printed
    assert "questions: train 3, test 2; together 5" in printed
    assert "answers that are not the choice their label names: 1" in printed
    assert "warning: 1 figures are in more than one of the published splits" in printed


def test_second_release_and_checked_test_set(folder, built) -> None:
    found = built("pmc_vqa/v2", folder)
    example = found["train"]["PMC9_F1.jpg"]
    assert example["text"] == "Uptake of the breast."
    assert (example["qa"]["answer"], example["qa"]["answer_label"]) == (["Focal uptake"], ["B"])
    assert found["test"]["PMC9_F1.jpg"]["qa"]["answer_label"] == ["C"]
    clean = built("pmc_vqa", folder, test="clean", name="clean")
    assert list(clean["test"]) == ["PMC2_F1.jpg"]
    with pytest.raises(UserError, match="checked test set of release=1 alone"):
        built("pmc_vqa", folder, test="clean", release="2", name="other")


def test_downloads_are_those_of_the_config() -> None:
    for options, names in (
        ({}, ["train.csv", "test.csv", "images.zip"]),
        ({"name": "v2"}, ["train_2.csv", "test_2.csv", "images_2.zip"]),
    ):
        found = PmcVqa.downloads(PmcVqa.make_config("anywhere", options))
        assert [download.path for download in found] == names


def test_errors_name_the_line(folder, built, save_table) -> None:
    for changes, message in (
        (
            {"Answer_label": "E", "Answer": "Other"},
            r"test\.csv line 2: neither Answer_label \('E'\)",
        ),
        ({"Figure_path": ""}, r"test\.csv line 2: Figure_path is blank"),
        ({"Figure_path": "PMC7_F1.jpg"}, r"1 of 3 images .*PMC7_F1\.jpg|1 of 1 images"),
    ):
        save_table(folder / "test.csv", [row(1, 4, **changes)])
        with pytest.raises(UserError, match=message):
            built("pmc_vqa", folder)
    (folder / "test.csv").write_text("Figure_path,Question\nx,y\n")
    with pytest.raises(UserError, match="has no column Choice A"):
        built("pmc_vqa", folder)
    (folder / "images.zip").unlink()
    with pytest.raises(UserError, match=r"missing images\.zip or images"):
        built("pmc_vqa", folder)
