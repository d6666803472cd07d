"""Without it a part of a figure could get another part's caption, or one article be in two splits."""

from __future__ import annotations

import json
import math
import pathlib
import zipfile

import pytest

from medvlp_jax.data import check
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

IMAGES = "caption_T060_filtered_top4_sep_v0_subfigures"


def make_entry(number: int) -> dict:
    """A row; two parts of a figure of each article."""
    return {
        "image": f"PMC{number // 2}_Fig1_{number}.jpg",
        "caption": f"{'AB'[number % 2]}. Dummy part {number}\u2028of a figure.",
        "alignment_type": "ocr" if number % 2 else None,
        "alignment_score": 0.25 if number % 2 else None,
    }


def save_list(file: pathlib.Path, entries: list[dict]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    file.write_text("".join(lines), "utf-8")


@pytest.fixture
def entries() -> list[dict]:
    entries = [make_entry(number) for number in range(200)]
    entries[3]["caption"] = "  "
    return entries


@pytest.fixture
def folder(tmp_path, entries, save_image) -> pathlib.Path:
    folder = tmp_path / "pmc_oa"
    for entry in entries:
        save_image(folder / IMAGES / entry["image"], 20, 24)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for entry in entries:
            archive.write(folder / IMAGES / entry["image"], f"{IMAGES}/{entry['image']}")
    again = {**entries[5], "caption": "Another caption of the same part."}
    save_list(folder / "pmc_oa.jsonl", [*entries, again])
    return folder


def remove_images(folder: pathlib.Path) -> None:
    for file in (folder / IMAGES).iterdir():
        file.unlink()
    (folder / IMAGES).rmdir()


def test_pairs_from_the_archive(folder, built, tmp_path, capsys) -> None:
    remove_images(folder)
    found = built("pmc_oa", folder)
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    assert len(rows) == 200
    first, second = rows["PMC1_Fig1_2.jpg"], rows["PMC2_Fig1_5.jpg"]
    assert first["text"] == "A. Dummy part 2 of a figure."
    assert (first["subject_id"], first["alignment_type"]) == ("PMC1", "")
    assert math.isnan(first["alignment_score"])
    assert (second["alignment_type"], second["alignment_score"]) == ("ocr", 0.25)
    again = rows["PMC2_Fig1_5.jpg#2"]
    assert again["text"] == "Another caption of the same part."
    assert again["image"] == second["image"] != first["image"]
    split_of: dict[str, set[str]] = {}
    for split, examples in found.items():
        for example in examples.values():
            split_of.setdefault(example["subject_id"], set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {s: sum(splits == {s} for splits in split_of.values()) for s in found} == {
        "train": 98,
        "validation": 1,
        "test": 1,
    }
    printed = capsys.readouterr().out
    assert "rows in the table 201" in printed
    assert "blank text: 1" in printed
    assert "images: 199" in printed
    assert check.check_dataset("pmc_oa", str(tmp_path / "out")).problems == ()


def test_published_split_and_whole_captions(folder, built, entries, tmp_path, capsys) -> None:
    (folder / "images.zip").unlink()
    keys = ("image", "caption")
    parts = {"train": entries[:101], "valid": entries[101:150], "test": entries[150:]}
    for part, rows in parts.items():
        extra = {"pmcid": "PMC7", "url_name": "a.jpg"} if part == "test" else {}
        save_list(folder / f"{part}.jsonl", [{k: e[k] for k in keys} | extra for e in rows])
    found = built("pmc_oa/published", folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 100,
        "validation": 49,
        "test": 50,
    }
    last = found["test"]["PMC99_Fig1_199.jpg"]
    assert (last["subject_id"], last["url_name"]) == ("PMC7", "a.jpg")
    # PMC50 is cut by the end of the first list; PMC7 has two parts in it.
    assert "2 articles have figures in more than one" in capsys.readouterr().out
    problems = check.check_dataset("pmc_oa/published", str(tmp_path / "out")).problems
    assert any("patients occur in both" in problem for problem in problems)
    save_list(
        folder / "pmc_oa_beta.jsonl", [{"image": e["image"], "caption": "Whole."} for e in entries]
    )
    beta = built("pmc_oa/beta", folder)
    assert {e["text"] for rows in beta.values() for e in rows.values()} == {"Whole."}
    (folder / "pmc_oa.jsonl").unlink()
    pooled = built("pmc_oa", folder)
    assert sum(map(len, pooled.values())) == 199


def test_wrong_files(folder, built, entries) -> None:
    (folder / "images.zip").unlink()
    (folder / IMAGES / entries[0]["image"]).unlink()
    with pytest.raises(UserError, match=r"1 of 200 images .*PMC0_Fig1_0\.jpg"):
        built("pmc_oa", folder)
    remove_images(folder)
    with pytest.raises(UserError, match=rf"missing images\.zip or {IMAGES} or .*huggingface"):
        built("pmc_oa", folder)
    (folder / "images").mkdir()
    for option, message in (
        ("published", r"missing train\.jsonl .*valid\.jsonl .*test\.jsonl"),
        ("beta", r"missing pmc_oa_beta\.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            built(f"pmc_oa/{option}", folder)
    with pytest.raises(UserError, match="the published split has no captions of whole figures"):
        built("pmc_oa/published", folder, captions="whole")
    entries[1]["alignment_score"] = "high"
    save_list(folder / "pmc_oa.jsonl", entries)
    with pytest.raises(UserError, match=r"line 2: alignment_score is 'high', expected a number"):
        built("pmc_oa", folder)
    save_list(folder / "pmc_oa.jsonl", [{"image": "a.jpg", "caption": None}])
    with pytest.raises(UserError, match="lists no image with a caption"):
        built("pmc_oa", folder)


def test_downloads_are_those_of_the_config(tmp_path) -> None:
    builder = load_spec("pmc_oa").builder_class()
    hub = "https://huggingface.co/datasets/axiong/pmc_oa/resolve"
    first = f"{hub}/14e866ed52483bd1d25ddbde735c4e796d6899d8"
    for name, lists in (
        ("by_article", [f"{hub}/main/pmc_oa.jsonl"]),
        ("beta", [f"{hub}/main/pmc_oa_beta.jsonl"]),
        ("published", [f"{first}/{part}.jsonl" for part in ("train", "valid", "test")]),
    ):
        found = builder.downloads(builder.make_config(tmp_path, {"name": name}))
        assert [d.url for d in found] == [*lists, f"{hub}/main/images.zip"]
        assert all(d.url.endswith(f"/{d.path}") for d in found)
