"""Without it a ROCO figure could get another figure's caption, licence or concepts."""

from __future__ import annotations

import json
import pathlib

import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

PARTS = {"train": range(1, 9), "validation": range(9, 11), "test": range(11, 13)}


def save_part(folder: pathlib.Path, rows: list[dict[str, str]]) -> None:
    """The five lists of one split and kind, in their published forms."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("captions", "keywords", "cuis", "semtypes"):
        lines = [f"{row['id']}\t{row.get(name, '')}\n" for row in rows]
        (folder / f"{name}.txt").write_text("".join(lines), "utf-8")
    lines = ["ROCO_ID,PMC_ID,CC\n", *(f"{r['id']},{r['file']},{r['license']}\n" for r in rows)]
    (folder / "licences.txt").write_text("".join(lines), "utf-8")


def make_rows(numbers: range, kind: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"ROCO_{kind}{number:04d}",
            "captions": f" Dummy figure number {number}, 5 µm\u2028wide. ",
            "file": f"PMC{100 + number}_dummy-g00{number}.jpg",
            "license": "CC BY",
            "keywords": "\tdummy\tfigure",
            "cuis": "C0000001\tC0000002",
            "semtypes": "\tT060\tDiagnostic Procedure\tT023\tBody Part, Organ, or Organ Component",
        }
        for number in numbers
    ]


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "roco-dataset"
    for split, numbers in PARTS.items():
        for kind, place in enumerate(("radiology", "non-radiology")):
            rows = make_rows(numbers, kind)
            if split == "test":  # a figure of an article of the training set, and a blank caption
                rows[0]["file"] = "PMC101_dummy-g999.jpg"
                rows[1]["captions"] = " "
            save_part(folder / "data" / split / place, rows)
            for i, row in enumerate(rows):
                name = f"{row['id']}.jpg" if i % 2 else row["file"]
                save_image(folder / "data" / split / place / "images" / name)
    return folder


def test_captions_concepts_and_splits(folder, built, tmp_path, capsys) -> None:
    found = built("roco", folder)
    assert {split: sorted(rows) for split, rows in found.items()} == {
        "train": [f"ROCO_0{n:04d}" for n in range(1, 9)],
        "validation": ["ROCO_00009", "ROCO_00010"],
        "test": ["ROCO_00011"],
    }
    first = found["train"]["ROCO_00002"]
    assert first["text"] == "Dummy figure number 2, 5 µm\u2028wide."
    assert first["keywords"] == ["dummy", "figure"]
    assert first["cuis"] == ["C0000001", "C0000002"]
    assert first["semtypes"] == ["T060", "T023"]
    assert (first["license"], first["subject_id"], first["kind"]) == (
        "CC BY",
        "PMC102",
        "radiology",
    )
    assert first["label"].shape == (0,)
    printed = capsys.readouterr().out
    assert "rows in the table 12 (published: 81825)" in printed
    assert "blank text: 1" in printed
    assert "1 articles have figures in more than one of the published splits" in printed
    report = check.check_dataset("roco", str(tmp_path / "out"))
    assert report.problems == (
        "1 patients occur in both test and train",
        "the table has 12 rows, published: 81825",
    )


def test_kinds_and_packed_copies(folder, built) -> None:
    (folder / "data").rename(folder / "all_data")
    found = built("roco/all", folder)
    assert sum(map(len, found.values())) == 22
    assert {e["kind"] for e in found["train"].values()} == {"radiology", "non-radiology"}
    others = built("roco/non_radiology", folder)
    assert sorted(others["validation"]) == ["ROCO_10009", "ROCO_10010"]


def test_missing_figures_and_lists(folder, built) -> None:
    (folder / "data/train/radiology/images/ROCO_00002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 11 images .*ROCO_00002\.jpg.*fetch\.py"):
        built("roco", folder)
    found = built("roco", folder, missing_images="skip")
    assert len(found["train"]) == 7
    (folder / "data/validation/radiology/cuis.txt").write_bytes(b"ROCO_00009\t\xe9\n")
    with pytest.raises(UserError, match=r"cuis\.txt is not UTF-8 \(byte 11\)"):
        built("roco", folder, name="other")
    (folder / "data/validation/radiology/cuis.txt").unlink()
    with pytest.raises(UserError, match=r"missing data/validation/radiology/cuis\.txt or all_data"):
        built("roco", folder, name="third")


def test_real_captions(data_dir, built, tmp_path) -> None:
    source = data_dir / "roco_test"
    lines = (source / "metadata.jsonl").read_text("utf-8").split("\n")
    entries = [json.loads(line) for line in lines if line][:30]
    folder = tmp_path / "real"
    for split in ("train", "validation"):
        save_part(folder / "data" / split / "radiology", [])
    test = folder / "data" / "test" / "radiology"
    rows = [
        {
            "id": e["roco_id"],
            "captions": f" {e['text']}",
            "file": e["src_name"],
            "license": e["license"],
            "keywords": "\t".join(e["keywords"]),
            "cuis": "\t".join(e["cuis"]),
            "semtypes": "\t" + "\t".join(e["semtypes"]),
        }
        for e in entries
    ]
    save_part(test, rows)
    (test / "images").mkdir()
    for e in entries:
        (test / "images" / f"{e['roco_id']}.jpg").write_bytes((source / e["image"]).read_bytes())
    found = built("roco", folder, size="64")["test"]
    assert len(found) == 30
    for e in entries:
        assert found[e["roco_id"]]["text"] == e["text"].strip()
        assert found[e["roco_id"]]["cuis"] == e["cuis"]
        assert found[e["roco_id"]]["subject_id"] == e["article"]
