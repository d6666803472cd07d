"""Without these, a second text could be lost without a word, or go to another image."""

from __future__ import annotations

import json

import pytest

from medvlp_jax.data.second_text import load_second_texts, second_text
from medvlp_jax.errors import UserError


def test_csv_tsv_and_jsonl_give_the_same(tmp_path) -> None:
    expected = {"a": 'One, "two"\nthree.', "b": "Größe normal."}
    (tmp_path / "t.csv").write_text(
        '\ufeffimage_id,study_id,text\na,s,"One, ""two""\nthree."\n\nb,s,Größe normal.\n', "utf-8"
    )
    (tmp_path / "t.tsv").write_text(
        'study_id\tback_translation\na\t"One, ""two""\nthree."\nb\t Größe normal. \n', "utf-8"
    )
    rows = [
        {"image_id": k, "text": "the first text", "second_text": v} for k, v in expected.items()
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])) + "\n", "utf-8")
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        assert load_second_texts(tmp_path / name) == expected


def test_columns_can_be_named(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("dicom,text,german\nx,a,b\n")
    assert load_second_texts(tmp_path / "t.csv", id_column="dicom", text_column="german") == {
        "x": "b"
    }


def test_an_image_comes_before_its_study() -> None:
    texts = {"i1": "of the image", "s1": "of the study"}
    assert second_text(texts, image_id="i1", study_id="s1") == "of the image"
    assert second_text(texts, image_id="i2", study_id="s1") == "of the study"
    assert second_text(texts, image_id="i2", study_id="s2") == second_text(texts) == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image_id,text\na,\n", "line 2: text is blank"),
        ("t.csv", "image_id,text\n,x\n", "line 2: image_id is blank"),
        ("t.csv", "image_id,text\na,x\na,y\n", "line 3: a second text for image_id 'a'"),
        ("t.csv", "image_id,text\na,x,y\n", "line 2: 3 cells, but the header names 2"),
        ("t.csv", 'image_id,text\na,"x\n', "correct the quotes"),
        ("t.csv", "image_id,text\n", "has no rows"),
        ("t.csv", "name,text\na,x\n", "no id column; name one of its columns image_id, study_id"),
        ("t.csv", "image_id,words\na,x\n", "no text column"),
        ("t.jsonl", '{"image_id": "a", "text": "x"}\n{', "line 2 is not JSON"),
        ("t.jsonl", '["a"]\n', "line 1: expected an object"),
        ("t.txt", "a x", r"expected a \.csv"),
    ],
)
def test_mistakes_name_the_line(tmp_path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_second_texts(tmp_path / name)


def test_files_that_are_not_there_or_not_text(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_second_texts(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"image_id,text\na,\xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_second_texts(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_text("image_id,text\na,x\n")
    with pytest.raises(UserError, match="no column 'words'"):
        load_second_texts(tmp_path / "u.csv", text_column="words")
