"""Without it a pickle of PathVQA could run code, or a Parquet row be given the image of another."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from medvlp_jax.errors import UserError
from tfds_builders.pathvqa.parquet_images import ParquetImages

SHORT = {"train": "train", "validation": "val", "test": "test"}


def png(value: int) -> bytes:
    """A flat image by which its row is recognised."""
    return cv2.imencode(".png", np.full((20, 24), value, np.uint8))[1].tobytes()


def grey(example: dict[str, Any]) -> int:
    pixels = cv2.imdecode(np.frombuffer(example["image"], np.uint8), 0)
    assert pixels is not None
    return int(pixels.mean().round())


def save_parquet(file: pathlib.Path, rows: list[tuple[int, str, str]]) -> None:
    """Rows (grey value of the image, question, answer), two per row group."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": png(value), "path": None} for value, _, _ in rows],
            "question": [question for _, question, _ in rows],
            "answer": [answer for _, _, answer in rows],
        }
    )
    pyarrow.parquet.write_table(table, file, row_group_size=2)


@pytest.fixture
def hub(tmp_path) -> pathlib.Path:
    folder = tmp_path / "hub"
    rows = [(10 * (i // 2), f"Is it {i}?", "yes" if i % 2 else "a cell") for i in range(10)]
    save_parquet(folder / "data/train-00000-of-00002-abc.parquet", rows[:5])
    save_parquet(folder / "data/train-00001-of-00002-def.parquet", rows[5:])
    save_parquet(folder / "data/validation-00000-of-00001.parquet", [(150, "Why?", "no")])
    save_parquet(
        folder / "data/test-00000-of-00001.parquet", [(200, "What?", "no"), (0, "Who?", "x")]
    )
    return folder


@pytest.fixture
def official(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "pvqa"
    (folder / "qas").mkdir(parents=True)
    for short in SHORT.values():
        save_image(folder / f"images/{short}/{short}_0001.jpg")
        entries = [
            {
                "answer_type": "other",
                "img_id": f"{short}_0001",
                "label": {"bile duct": 1, "liver": 0.3},
                "question_id": 100422000 + number,
                "question_type": "where",
                "sent": " Where is it? ",
            }
            for number in range(2)
        ]
        (folder / f"qas/{short}_vqa.pkl").write_bytes(pickle.dumps(entries))
    return folder


def test_parquet_rows_keep_their_image(hub, built, capsys) -> None:
    found = built("pathvqa", hub, quality="0")
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 5,
        "validation": 1,
        "test": 2,
    }
    by_grey = {grey(e): e for e in found["train"].values()}
    assert sorted(by_grey) == [0, 10, 20, 30, 40]
    for value, example in by_grey.items():
        first = 2 * value // 10
        assert example["qa"]["question"] == [f"Is it {first}?", f"Is it {first + 1}?"]
        assert example["qa"]["answer"] == ["a cell", "yes"]
        assert example["qa"]["answer_type"] == ["OPEN", "CLOSED"]
        assert example["qa"]["question_id"] == [f"train/{first}", f"train/{first + 1}"]
    printed = capsys.readouterr().out
    assert "train 10 (published: 19654), validation 1 (published: 6259)" in printed
    assert "warning: 1 images are in more than one of the published splits" in printed


def test_official_pickles(official, built, capsys) -> None:
    found = built("pathvqa", official)
    example = found["validation"]["val_0001"]
    assert example["qa"]["answer"] == ["bile duct", "bile duct"]
    assert example["qa"]["question"][0] == "Where is it?"
    assert example["qa"]["question_type"] == ["where", "where"]
    assert example["qa"]["question_id"] == ["100422000", "100422001"]
    assert "together 6 (published: 32799)" in capsys.readouterr().out


class Attack:
    """What a hostile pickle looks like: loading it would call a function."""

    def __init__(self, file: pathlib.Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_a_pickle_is_never_executed(official, built, tmp_path) -> None:
    hostile = pickle.dumps([Attack(tmp_path / "executed")])
    (official / "qas/val_vqa.pkl").write_bytes(hostile)
    with pytest.raises(UserError, match=r"val_vqa\.pkl .*mkdir.* was not executed"):
        built("pathvqa", official)
    assert not (tmp_path / "executed").exists()
    pickle.loads(hostile)  # it would have been
    assert (tmp_path / "executed").exists()


def test_errors_name_the_file(official, hub, built) -> None:
    (official / "qas/test_vqa.pkl").write_bytes(pickle.dumps([{"img_id": "test_0001"}]))
    with pytest.raises(UserError, match=r"test_vqa\.pkl entry 1 has no sent, label"):
        built("pathvqa", official)
    (official / "qas/test_vqa.pkl").unlink()
    with pytest.raises(UserError, match=r"missing qas/test_vqa\.pkl .*parquet"):
        built("pathvqa", official)
    file = hub / "data/test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pa.table({"image": [{"bytes": b""}], "question": ["a"]}), file)
    with pytest.raises(UserError, match="has no column answer"):
        built("pathvqa", hub)
    file.write_bytes(b"<html>")
    with pytest.raises(UserError, match="is not a Parquet file"):
        built("pathvqa", hub)
    file.unlink()
    with pytest.raises(UserError, match=r"has no test-\*\.parquet"):
        built("pathvqa", hub)


def test_images_survive_the_way_to_another_process(hub) -> None:
    images = ParquetImages(("question", "answer"))
    rows = list(images.rows(hub / "data/train-00000-of-00002-abc.parquet"))
    copy = pickle.loads(pickle.dumps(images))
    for place, content, _ in reversed(rows):
        assert copy.read(place) == images.read(place) == content


def test_a_row_without_image_is_rejected(hub, built, tmp_path) -> None:
    file = hub / "data/validation-00000-of-00001.parquet"
    column = pa.array(
        [None, {"bytes": png(9), "path": "x.png"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pyarrow.parquet.write_table(
        pa.table({"image": column, "question": ["a", "c"], "answer": ["b", "d"]}), file
    )
    built("pathvqa", hub, max_rejected="0.2")
    assert "empty file" in (tmp_path / "out/pathvqa/default/rejected.jsonl").read_text()
