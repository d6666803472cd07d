"""Without these, a user's own folder could be split across patients, mislabelled or half built."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from medvlp_jax.data import build, check, pipeline
from medvlp_jax.errors import UserError
from tfds_builders import patient_splits
from tfds_builders.image_text_folder import image_text_folder as builder
from tfds_builders.image_text_folder.table import find_table, read_table


def write_folder(
    folder: pathlib.Path, rows: list[dict], *, table: str = "metadata.jsonl"
) -> pathlib.Path:
    """Images of noise named in the rows, and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for row in rows:
        path = folder / row["image"]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 255, (40, 50), dtype=np.uint8))
    if table.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        keys = list(rows[0])
        lines = [",".join(keys)] + [",".join(f'"{row[k]}"' for k in keys) for row in rows]
        text = "\n".join(lines) + "\n"
    (folder / table).write_text(text)
    return folder


def some_rows(count: int = 20, **extra) -> list[dict]:
    return [
        {"image": f"im/{i}.png", "text": f"text number {i}", "patient_id": f"p{i // 2}", **extra}
        for i in range(count)
    ]


def split_of(data_dir) -> dict[str, str]:
    """image -> split of the built dataset."""
    found = {}
    for split in ("train", "validation", "test"):
        try:
            source = pipeline.open_source("image_text_folder", split, data_dir)
        except UserError:
            continue
        found.update({e["image_id"]: split for e in source})
    return found


def test_real_chest_radiographs(data_dir, tmp_path, capsys) -> None:
    build.build_dataset("image_text_folder", tmp_path, manual_dir=data_dir / "covid_cxr")
    printed = capsys.readouterr().out
    assert "rows in the table 316" in printed
    assert "blank text: 76" in printed
    patients: dict[str, set[str]] = {}
    total = 0
    for split in ("train", "validation", "test"):
        source = pipeline.open_source("image_text_folder", split, tmp_path)
        total += len(source)
        for example in source:
            assert example["text"].strip()
            patients.setdefault(example["subject_id"], set()).add(split)
    assert total == 240
    assert all(len(splits) == 1 for splits in patients.values())
    assert source.metadata["dropped"] == {"blank_text": 76, "rejected": 0}
    assert "COVID-19" in source.label_names
    assert "todo" not in source.label_names
    report = check.check_dataset("image_text_folder", str(tmp_path))
    assert not any("patients" in problem for problem in report.problems)


def test_splits_are_deterministic_and_by_patient(tmp_path) -> None:
    folder = write_folder(tmp_path / "src", some_rows(60))
    for name in ("a", "b"):
        build.build_dataset("image_text_folder", tmp_path / name, manual_dir=folder)
    first, second = split_of(tmp_path / "a"), split_of(tmp_path / "b")
    assert first == second
    assert set(first.values()) == {"train", "validation", "test"}
    for i in range(0, 60, 2):
        assert first[f"im/{i}.png"] == first[f"im/{i + 1}.png"]


@pytest.mark.parametrize("column", ["article", "pmcid"])
def test_figures_of_one_article_stay_together(tmp_path, column) -> None:
    rows = [
        {"image": f"{i}.png", "caption": f"figure {i}", column: f"PMC{i // 3}"} for i in range(60)
    ]
    build.build_dataset(
        "image_text_folder", tmp_path, manual_dir=write_folder(tmp_path / "f", rows)
    )
    found = split_of(tmp_path)
    assert set(found.values()) == {"train", "validation", "test"}
    for i in range(60):
        assert found[f"{i}.png"] == found[f"{i - i % 3}.png"]


def test_csv_with_a_split_column_and_labels(tmp_path) -> None:
    rows = [
        {
            "path": f"{i}.png",
            "image": f"{i}.png",
            "report": "a, b",
            "split": ("train", "val", "test")[i % 3],
            "labels": "Edema;Effusion" if i % 2 else "unknown",
        }
        for i in range(12)
    ]
    folder = write_folder(tmp_path / "src", rows, table="anything.csv")
    build.build_dataset("image_text_folder", tmp_path, manual_dir=folder, options={"size": "0"})
    source = pipeline.open_source("image_text_folder", "validation", tmp_path)
    assert source.label_names == ("Edema", "Effusion")
    by_image = {e["image_id"]: e["label"].tolist() for e in source}
    assert by_image == {"1.png": [1, 1], "4.png": [-2, -2], "7.png": [1, 1], "10.png": [-2, -2]}
    assert source.metadata["rows_without_patient"] == 12


def test_patient_in_two_splits_is_refused(tmp_path) -> None:
    rows = some_rows(4)
    for row, split in zip(rows, ("train", "test", "train", "train"), strict=True):
        row["split"] = split
    folder = write_folder(tmp_path / "src", rows)
    with pytest.raises(UserError, match=r"lines 1 and 2: one patient is in train and in test"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    build.build_dataset(
        "image_text_folder", tmp_path, manual_dir=folder, options={"patient_in_two_splits": "first"}
    )
    assert set(split_of(tmp_path).values()) == {"train"}


def test_bad_images_are_listed_and_over_the_limit_stop_the_build(tmp_path) -> None:
    rows = some_rows(20)
    folder = write_folder(tmp_path / "src", rows)
    (folder / "im/3.png").write_text("<html>404</html>")
    (folder / "im/4.png").unlink()
    with pytest.raises(UserError, match=r"max_rejected"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    assert not list((tmp_path / "image_text_folder").rglob("dataset_info.json"))
    assert not list((tmp_path / "image_text_folder").rglob("incomplete*"))
    build.build_dataset(
        "image_text_folder", tmp_path, manual_dir=folder, options={"max_rejected": "0.1"}
    )
    listed = (tmp_path / "image_text_folder" / "src" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in listed} == {"im/3.png", "im/4.png"}
    assert any("HTML" in line for line in listed)
    assert len(split_of(tmp_path)) == 18


def test_a_path_cannot_leave_the_folder(tmp_path) -> None:
    rows = some_rows(10)
    folder = write_folder(tmp_path / "src", rows)
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((40, 40), np.uint8))
    rows[0]["image"] = "../secret.png"
    write_folder(folder, rows)
    with pytest.raises(UserError, match="leads out of the folder"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)


def test_killed_build_starts_again_cleanly(tmp_path, root) -> None:
    folder = write_folder(tmp_path / "src", some_rows(20))
    code = (
        "import os, medvlp_jax.data.build as b, tfds_builders.stored_images as f\n"
        "old = f.decode_image\n"
        "n = [0]\n"
        "def die(data):\n"
        "    n[0] += 1\n"
        "    if n[0] == 8: os._exit(9)\n"
        "    return old(data)\n"
        "f.decode_image = die\n"
        f"b.build_dataset('image_text_folder', {str(tmp_path)!r}, manual_dir={str(folder)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=root)
    assert done.returncode == 9
    assert list((tmp_path / "image_text_folder" / "src").glob("incomplete*"))
    build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    assert len(split_of(tmp_path)) == 20
    assert not list((tmp_path / "image_text_folder" / "src").glob("incomplete*"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png", "words": "x"}], "no text column"),
        (
            [{"picture": "a.png", "image_": "", "text": "x", "image": ""}],
            "line 1: the image column",
        ),
        ([{"image": "a.png", "text": " "}], "all 1 rows have a blank text"),
        ([{"image": "a.png", "text": "x", "split": "holdout"}], "split 'holdout' is unknown"),
    ],
)
def test_wrong_tables_are_explained(tmp_path, rows, message) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match=message):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)


def test_wrong_folders_are_explained(tmp_path) -> None:
    with pytest.raises(UserError, match="give --manual-dir FOLDER"):
        build.build_dataset("image_text_folder", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no table"):
        find_table(tmp_path / "empty")
    for name in ("a.csv", "b.csv"):
        (tmp_path / "empty" / name).write_text("image,text\n")
    with pytest.raises(UserError, match="several tables"):
        find_table(tmp_path / "empty")
    with pytest.raises(UserError, match="is unknown"):
        builder.ImageTextFolder.make_config(tmp_path, {"sise": "3"})
    with pytest.raises(UserError, match="dataset 'image_text_foldr' is unknown"):
        build.build_dataset("image_text_foldr", tmp_path)


def test_table_readers_name_the_line(tmp_path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"image": "a", "text": "b"}\n{broken\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_table(file)
    file = tmp_path / "t.csv"
    file.write_text("image,text\na.png,one, two\n")
    with pytest.raises(UserError, match="line 2 has more fields"):
        read_table(file)
    file.write_bytes("image,text\na.png,caf\xe9\n".encode("latin1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(file)
    file.write_text("image;text\na.png;one, two\n")
    assert read_table(file).rows[0].text == "one, two"


def test_check_finds_leaks(tmp_path) -> None:
    rows = [
        {"image": f"{i}.png", "text": f"t{i % 3}", "split": "train" if i < 8 else "test"}
        for i in range(12)
    ]
    folder = write_folder(tmp_path / "src", rows)
    (folder / "9.png").write_bytes((folder / "2.png").read_bytes())
    build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    report = check.check_dataset("image_text_folder", str(tmp_path))
    assert report.problems == ("1 images occur in both test and train",)
    assert any("texts occur in more than one split" in note for note in report.notes)
    assert "PROBLEM" in str(report)


def test_one_column_per_label(tmp_path) -> None:
    rows = [
        {"image": "0.png", "text": "a", "Edema": "1.0", "Pleural Effusion": "", "Age": "063Y"},
        {"image": "1.png", "text": "b", "Edema": "-1", "Pleural Effusion": "0", "Age": "x"},
        {"image": "2.png", "text": "c", "Edema": "", "Pleural Effusion": "", "Age": "7"},
    ]
    folder = write_folder(tmp_path / "src", rows, table="metadata.csv")
    build.build_dataset(
        "image_text_folder", tmp_path, manual_dir=folder, options={"fractions": "1,0,0"}
    )
    source = pipeline.open_source("image_text_folder", "train", tmp_path)
    assert source.label_names == ("Edema", "Pleural Effusion")
    found = {e["image_id"]: (e["label"].tolist(), float(e["age"])) for e in source}
    assert found["0.png"] == ([1, -2], 63.0)
    assert found["1.png"][0] == [-1, 0]
    assert np.isnan(found["1.png"][1])
    assert found["2.png"] == ([-2, -2], 7.0)
    (folder / "metadata.csv").write_text("image,text,Edema,Cardiomegaly\n0.png,a,maybe,1\n")
    with pytest.raises(UserError, match="line 2: label 'Edema' is 'maybe'"):
        read_table(folder / "metadata.csv")


def test_column_of_objects_is_labels_not_text(tmp_path) -> None:
    file = tmp_path / "t.jsonl"
    row = {"image": "a", "text": "b", "findings": {"Effusion": True, "A-lines": None, "Ok": False}}
    file.write_text(json.dumps(row) + "\n")
    table = read_table(file)
    assert table.columns["label"] == "findings"
    assert table.rows[0].findings == ""
    assert table.rows[0].labels == {"Effusion": 1, "Ok": 0}
    assert builder.label_vector(table.rows[0], ("Effusion", "A-lines", "Ok")).tolist() == [1, -2, 0]


def test_unicode_line_separator_inside_a_text(tmp_path) -> None:
    text = "one\u2028two\x85three"
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"image": "a", "text": text}, ensure_ascii=False) + "\n", "utf-8")
    assert read_table(file).rows[0].text == text
    file = tmp_path / "t.csv"
    file.write_text('image,text\na.png,"one\ntwo\u2028three"\n', "utf-8")
    assert read_table(file).rows[0].text == "one\ntwo\u2028three"


def test_columns_can_be_named_and_left_out(tmp_path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("image,memo,fold\na.png,hello,3\n")
    with pytest.raises(UserError, match="no text column"):
        read_table(file)
    with pytest.raises(UserError, match=r"split '3' is unknown.*split_column="):
        read_table(file, {"text": "memo"})
    assert read_table(file, {"text": "memo", "split": ""}).rows[0].text == "hello"
    with pytest.raises(UserError, match="did you mean 'memo'"):
        read_table(file, {"text": "meno"})


def test_same_name_but_other_data_is_not_taken_for_built(tmp_path, capsys) -> None:
    folder = write_folder(tmp_path / "src", some_rows(10))
    path = build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    capsys.readouterr()
    assert build.build_dataset("image_text_folder", tmp_path, manual_dir=folder) == path
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"size \(was 256, now 64\)"):
        build.build_dataset(
            "image_text_folder", tmp_path, manual_dir=folder, options={"size": "64"}
        )
    other = write_folder(tmp_path / "elsewhere" / "src", some_rows(12))
    with pytest.raises(UserError, match="another folder of this name"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=other)
    build.build_dataset("image_text_folder", tmp_path, manual_dir=other, options={"name": "two"})
    with pytest.raises(UserError, match="image_text_folder/src, image_text_folder/two"):
        pipeline.open_source("image_text_folder", "train", tmp_path)


def test_two_builds_at_once_do_not_destroy_each_other(tmp_path) -> None:
    folder = write_folder(tmp_path / "src", some_rows(4))
    half_built = tmp_path / "image_text_folder" / "src" / "incomplete.ABC_1.0.0"
    half_built.mkdir(parents=True)
    with (
        build._locked(half_built.parent / ".building", "another process is building it"),
        pytest.raises(UserError, match="another process is building"),
    ):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder)
    assert half_built.is_dir()


def test_special_files_and_links_are_rejected(tmp_path) -> None:
    rows = some_rows(10)
    folder = write_folder(tmp_path / "src", rows)
    cv2.imwrite(str(tmp_path / "outside.png"), np.zeros((40, 40), np.uint8))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    rows += [
        {"image": name, "text": "x", "patient_id": "z"} for name in ("link.png", "im", "a\0b.png")
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    build.build_dataset(
        "image_text_folder", tmp_path, manual_dir=folder, options={"max_rejected": "0.5"}
    )
    listed = (tmp_path / "image_text_folder" / "src" / "rejected.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["image"]: json.loads(line)["reason"] for line in listed}
    assert "out of the folder" in reasons["link.png"]
    assert reasons["im"] == "is not a file"
    assert "cannot be read" in reasons["a\0b.png"]


def test_every_real_folder_builds(data_dir, tmp_path) -> None:
    for name in ("lus_pocus", "roco_test"):
        build.build_dataset(
            "image_text_folder", tmp_path, manual_dir=data_dir / name, options={"size": "64"}
        )
        source = pipeline.open_source(f"image_text_folder/{name}", "train", tmp_path)
        assert all(example["text"] and example["image"] for example in source)
    # Its table has no texts: the message says which columns there are.
    with pytest.raises(UserError, match=r"no text column \(it has image, organ"):
        build.build_dataset("image_text_folder", tmp_path, manual_dir=data_dir / "vqa_rad")


def test_folds_test_every_patient_once() -> None:
    patients = {f"p{k}" for k in range(23)}
    tested, shares = [], (0.7, 0.1, 0.2)
    for fold in range(5):
        splits = patient_splits.hash_splits(patients, shares, fold)
        assert set(splits) == patients
        tested += [patient for patient, split in splits.items() if split == "test"]
    assert len(tested) >= 23
    assert set(tested) == patients
    assert len(tested) - len(patients) <= 2  # 23 patients do not divide by 5
    assert patient_splits.hash_splits(patients, shares, 0) == patient_splits.hash_splits(
        patients, shares
    )
    with pytest.raises(UserError, match="there are the folds 0 to 4"):
        builder.ImageTextFolder.make_config("/tmp", {"fold": "5"})
