"""Without it SLAKE's Chinese questions, organ masks or boxes could be lost or belong to another image."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

ORGANS = "70:Liver\n230:Spleen\n"


def entry(image: int, number: int, language: str) -> dict[str, object]:
    """One question with the keys of the published files."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": f"Is invented thing {number} seen?" if language == "en" else f"有{number}吗？",
        "answer": "Yes " if language == "en" else "是",
        "q_lang": language,
        "location": "Abdomen",
        "modality": "CT",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": number,
    }


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    """Six images, 40 high and 50 wide; number 5 is asked about in Chinese alone."""
    folder = tmp_path / "Slake1.0"
    for i in range(6):
        place = folder / "imgs" / f"xmlab{i}"
        save_image(place / "source.jpg", 40, 50)
        mask = np.zeros((40, 50), np.uint8)
        mask[:10, :20] = 70
        mask[20:, :] = 230
        mask[15, 15] = 99  # of no organ
        cv2.imwrite(str(place / "mask.png"), mask)
        boxes = [{"Liver": [5.0, 10.0, 20.0, 10.0]}, {"Atelectasis": [0, 0, 50, 20]}]
        (place / "detection.json").write_text(json.dumps(boxes[: 1 + i % 2]))
    for name, images in (("train", (0, 1, 2)), ("validate", (3,)), ("test", (4, 5))):
        entries = [entry(i, 10 * i + 1, "en") for i in images if i != 5]
        entries += [entry(i, 10 * i + 2, "zh") for i in images]
        (folder / f"{name}.json").write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    (folder / "mask.txt").write_text(ORGANS)
    return folder


def test_english_is_the_default(folder, built, capsys) -> None:
    found = built("slake", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    row = found["train"]["xmlab1/source.jpg"]
    assert row["qa"]["question"] == ["Is invented thing 11 seen?"]
    assert (row["qa"]["answer"], row["qa"]["answer_type"]) == (["Yes"], ["CLOSED"])
    assert (row["qa"]["question_type"], row["qa"]["question_id"]) == (["Organ"], ["11"])
    assert (row["qa"]["language"], row["qa"]["base_type"]) == (["en"], ["vqa"])
    assert (row["organ"], row["modality"], row["organs"]) == ("Abdomen", "CT", ["Liver", "Spleen"])
    printed = capsys.readouterr().out
    assert "slake/en" in printed
    assert "questions: train 3, validation 1, test 1; together 5 (published: 7033)" in printed


def test_masks_and_boxes(folder, built, tmp_path, capsys) -> None:
    found = built("slake/all", folder, size="20")
    row = found["train"]["xmlab1/source.jpg"]
    mask = row["organ_mask"][:, :, 0]
    assert mask.shape == (20, 25)
    assert (mask[:5, :10] == 70).all()
    assert (mask[10:] == 230).all()
    assert sorted(np.unique(mask)) == [0, 70, 230]
    np.testing.assert_allclose(row["boxes"]["bbox"], [[0.25, 0.1, 0.5, 0.5], [0, 0, 0.5, 1]])
    assert list(row["boxes"]["label"]) == [1, 0]  # Atelectasis, Liver
    assert row["label"].tolist() == [1, 1]
    assert found["train"]["xmlab0/source.jpg"]["label"].tolist() == [-2, 1]
    assert row["qa"]["question"][1] == "有12吗？"
    assert "together 11 (published: 14028)" in capsys.readouterr().out
    report = check.check_dataset("slake/all", str(tmp_path / "out"))
    assert report.problems == ("the table has 6 rows, published: 642",)


def test_chinese_and_missing_annotations(folder, built, capsys) -> None:
    (folder / "imgs/xmlab5/mask.png").unlink()
    (folder / "imgs/xmlab5/detection.json").unlink()
    (folder / "validate.json").rename(folder / "validation.json")
    found = built("slake/zh", folder)
    row = found["test"]["xmlab5/source.jpg"]
    assert row["qa"]["language"] == ["zh"]
    assert row["organs"] == []
    assert not row["organ_mask"].any()
    assert len(row["boxes"]["label"]) == 0
    printed = capsys.readouterr().out
    assert "1 images have no mask.png" in printed
    assert "1 images have no detection.json" in printed


def test_damaged_files(folder, built, tmp_path) -> None:
    cv2.imwrite(str(folder / "imgs/xmlab2/mask.png"), np.zeros((40, 40), np.uint8))
    found = built("slake", folder, max_rejected="0.3")
    assert "xmlab2/source.jpg" not in found["train"]
    listed = (tmp_path / "out/slake/en/rejected.jsonl").read_text()
    assert "mask.png is 40 x 40, the image 50 x 40" in listed
    text = (folder / "test.json").read_text("utf-8")
    for old, new, message in (
        ('"q_lang": "zh"', '"q_lang": "fr"', r"test\.json entry 2: q_lang is 'fr'"),
        ('"answer"', '"reply"', r"test\.json list entry 1 has no answer"),
    ):
        (folder / "test.json").write_text(text.replace(old, new), "utf-8")
        with pytest.raises(UserError, match=message):
            built("slake/all", folder)
    (folder / "test.json").write_text(text, "utf-8")
    (folder / "imgs/xmlab3/detection.json").write_text('[{"Liver": [1, 2]}]')
    with pytest.raises(
        UserError, match=r"xmlab3/detection\.json: box is \[1, 2\], expected four numbers"
    ):
        built("slake/all", folder)
    (folder / "mask.txt").write_text("70 Liver\n")
    with pytest.raises(UserError, match=r"mask\.txt line 1 is '70 Liver', expected VALUE:ORGAN"):
        built("slake/all", folder)
    (folder / "test.json").unlink()
    with pytest.raises(UserError, match=r"missing test\.json .*med-vqa"):
        built("slake", folder)
