"""Without it the leak of VQA-RAD's published split could pass into results unseen."""

from __future__ import annotations

import json
import pathlib
import zipfile

import pytest

from medvlp_jax.data import check
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import fetch

JSON = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"


def entry(image: str, number: int, phrase_type: str) -> dict[str, object]:
    """One question with the keys of the published file."""
    return {
        "qid": str(number),
        "phrase_type": phrase_type,
        "qid_linked_id": f"dummy-{number}",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=dummy",
        "image_name": image,
        "image_organ": "CHEST",
        "evaluation": "not evaluated",
        "question": f"Is invented thing {number} present?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": number if number == 3 else "Yes",
        "answer_type": "CLOSED ",
    }


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    """Twenty images: five with questions in both published splits, ten in train, five in test."""
    folder = tmp_path / "vqa"
    entries = []
    for i in range(20):
        name = f"synpic{i}.jpg"
        save_image(folder / IMAGES / name)
        if i < 15:
            entries.append(entry(name, 2 * i, "para" if i % 2 else "freeform"))
        if i < 5 or i >= 15:
            entries.append(entry(name, 2 * i + 1, "test_para" if i % 2 else "test_freeform"))
    (folder / JSON).write_text(json.dumps(entries))
    return folder


def test_fetched_archive_fills_the_layout(folder, built) -> None:
    builder = load_spec("vqa_rad").builder_class()
    images = builder.DOWNLOADS[1]
    fetched = folder.parent / "fetched"
    (fetched / images.path).parent.mkdir(parents=True)
    (folder / JSON).rename(fetched / builder.DOWNLOADS[0].path)
    with zipfile.ZipFile(fetched / images.path, "w") as archive:
        for file in (folder / IMAGES).iterdir():
            archive.write(file, file.name)
    fetch(builder.DOWNLOADS, fetched)  # what is there is not fetched again, only unpacked
    assert sum(map(len, built("vqa_rad", fetched).values())) == 20


def test_default_is_leak_free(folder, built, tmp_path, capsys) -> None:
    found = built("vqa_rad", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert len({name for rows in found.values() for name in rows}) == 20
    rows = {name: e for examples in found.values() for name, e in examples.items()}
    qa = rows["synpic1.jpg"]["qa"]
    assert qa["question"] == ["Is invented thing 2 present?", "Is invented thing 3 present?"]
    assert qa["answer"] == ["Yes", "3"]
    assert qa["answer_type"] == ["CLOSED", "CLOSED"]
    assert qa["question_id"] == ["2", "3"]
    assert rows["synpic1.jpg"]["organ"] == "CHEST"
    assert len(rows["synpic10.jpg"]["qa"]["question"]) == 1
    printed = capsys.readouterr().out
    assert "vqa_rad/leak_free" in printed
    assert "together 25 (published: 2248)" in printed
    assert "split by image; the published one, which leaks, is vqa_rad/official" in printed
    report = check.check_dataset("vqa_rad", str(tmp_path / "out"))
    assert report.problems == ("the table has 20 rows, published: 314",)


def test_official_split_says_that_it_leaks(folder, built, tmp_path, capsys) -> None:
    found = built("vqa_rad/official", folder)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 15, "test": 10}
    assert found["train"]["synpic1.jpg"]["qa"]["question_id"] == ["2"]
    assert found["test"]["synpic1.jpg"]["qa"]["question_id"] == ["3"]
    printed = capsys.readouterr().out
    assert "questions: train 15, test 10" in printed
    assert "asks about 5 images in train and in test (published: 202)" in printed
    report = check.check_dataset("vqa_rad/official", str(tmp_path / "out"))
    assert "5 images occur in both test and train" in report.problems


def test_errors_name_the_entry(folder, built) -> None:
    text = (folder / JSON).read_text()
    (folder / JSON).write_text(text.replace('"para"', '"holdout"'))
    with pytest.raises(UserError, match="entry 3: phrase_type is 'holdout', expected freeform"):
        built("vqa_rad", folder)
    (folder / JSON).write_text(text.replace('"answer"', '"reply"'))
    with pytest.raises(UserError, match="entry 1 has no answer"):
        built("vqa_rad", folder)
    (folder / JSON).write_text(text[:50])
    with pytest.raises(UserError, match="is not JSON"):
        built("vqa_rad", folder)
    (folder / JSON).write_text(text)
    (folder / IMAGES / "synpic7.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 20 images .*synpic7\.jpg"):
        built("vqa_rad", folder)
    (folder / JSON).unlink()
    with pytest.raises(UserError, match=r"missing VQA_RAD Dataset Public\.json or .*osf\.io"):
        built("vqa_rad", folder)


def test_the_202_shared_images_of_the_real_dataset_are_found(data_dir, built, tmp_path) -> None:
    source = data_dir / "vqa_rad"
    folder = tmp_path / "real"
    (folder / IMAGES).mkdir(parents=True)
    entries = []
    for line in (source / "qa.jsonl").read_text("utf-8").split("\n"):
        if line:
            row = json.loads(line)
            name = row.pop("image").removeprefix("images/")
            entries.append({**row, "image_name": name, "image_organ": row["organ"]})
            if not (folder / IMAGES / name).exists():
                (folder / IMAGES / name).write_bytes((source / "images" / name).read_bytes())
    (folder / JSON).write_text(json.dumps(entries))
    built("vqa_rad/official", folder, size="64")
    official = check.check_dataset("vqa_rad/official", str(tmp_path / "out"))
    assert "202 patients occur in both test and train" in official.problems
    assert official.counts == {"train": 313, "test": 203}
    found = built("vqa_rad", folder, size="64")
    assert sum(len(e["qa"]["question"]) for rows in found.values() for e in rows.values()) == 2248
    leak_free = check.check_dataset("vqa_rad/leak_free", str(tmp_path / "out"))
    assert leak_free.ok, leak_free.problems
