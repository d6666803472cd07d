"""Without it a MedICaT figure could get another figure's caption, or a subcaption another part."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check
from medvlp_jax.errors import UserError

FIGURES = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
SUBCAPTIONS = "subcaptions_public.jsonl"


def make_entry(number: int) -> dict:
    """A line of the list; two figures of each paper."""
    return {
        "pdf_hash": f"{number // 2:040x}",
        "fig_key": f"Figure{number}",
        "fig_uri": f"2-Figure{number}-1.png",
        "s2_caption": f"Figure {number}. (A) Dummy scan\u2028and (B) dummy photograph.",
        "s2orc_caption": None,
        "s2orc_references": [f"Nothing is seen (Figure {number} ).", "See it again."],
        "radiology": number % 2 == 0,
        "scope": False,
        "predicted_type": "Medical images",
        "oa_info": {"doi": f"10.1/{number}", "oa": {"is_oa": True, "license": "cc-by-nc"}},
    }


def save_lines(file: pathlib.Path, entries: list[dict]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    file.write_text("".join(lines), "utf-8")


@pytest.fixture
def entries() -> list[dict]:
    entries = [make_entry(number) for number in range(40)]
    entries[1].update(s2_caption="", s2orc_caption="Caption of the other source.")
    entries[2].update(s2_caption="", s2orc_references=None)
    entries[3].update(s2orc_references=None, oa_info={"doi": None, "oa": {"license": None}})
    return entries


@pytest.fixture
def parts() -> dict:
    words = ["Figure", "0", ".", "(A)", "Dummy", "scan", "and", "(B)", "dummy", "photograph", "."]
    return {
        "pdf_hash": f"{0:040x}",
        "fig_key": "Figure0",
        "fig_uri": "2-Figure0-1.png",
        "text": "Figure 0. (A) Dummy scan and (B) dummy photograph.",
        "tokens": [{"text": word, "id": i} for i, word in enumerate(words)],
        "width": 60,
        "height": 40,
        "subfigures": [
            {"label": "A", "points": [[0, 0], [30, 0], [30, 40], [0, 40]], "color": "yellow"},
            {"label": "B", "points": [[30, 10], [66, 10], [45, 20]], "color": "magenta"},
            {"label": "C", "points": [[30, 20], [60, 40]], "color": "red"},
        ],
        "subcaptions": {"A": [5, 4, 3], "B": [7, 8, 9]},
    }


@pytest.fixture
def folder(tmp_path, entries, parts, save_image) -> pathlib.Path:
    folder = tmp_path / "release"
    folder.mkdir()
    save_lines(folder / FIGURES, entries)
    save_lines(folder / SUBCAPTIONS, [parts])
    for entry in entries:
        save_image(folder / "figures" / f"{entry['pdf_hash']}_{entry['fig_uri']}", 40, 60)
    return folder


def key_of(number: int) -> str:
    return f"{number // 2:040x}_2-Figure{number}-1.png"


def test_captions_references_and_parts(folder, built, tmp_path, capsys) -> None:
    found = built("medicat", folder.parent)  # the folder above release/ will do
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    assert len(rows) == 39
    first = rows[key_of(0)]
    assert first["text"] == "Figure 0. (A) Dummy scan and (B) dummy photograph."
    assert first["references"] == ["Nothing is seen (Figure 0 ).", "See it again."]
    assert (first["doi"], first["license"], first["radiology"]) == ("10.1/0", "cc-by-nc", True)
    parts = first["subfigures"]
    assert parts["label"] == ["A", "B", "C"]
    assert parts["text"] == ["(A) Dummy scan", "(B) dummy photograph", ""]
    # The second polygon leads out of the image on the right.
    np.testing.assert_allclose(
        np.stack(parts["bbox"]), [[0, 0, 1, 0.5], [0.25, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    )
    assert rows[key_of(1)]["text"] == "Caption of the other source."
    assert rows[key_of(1)]["subfigures"]["label"] == []
    third = rows[key_of(3)]
    assert (third["references"], third["doi"], third["license"]) == ([], "", "")
    assert not third["radiology"]
    for number in range(4, 40, 2):  # figures of one paper are in one split
        assert len({s for s, rs in found.items() for n in (0, 1) if key_of(number + n) in rs}) == 1
    assert set(found) == {"train", "validation", "test"}
    printed = capsys.readouterr().out
    assert "rows in the table 40 (published: 217060)" in printed
    assert "blank text: 1" in printed
    assert "figures with annotated subfigures: 1 (published: 2069)" in printed
    problems = check.check_dataset("medicat", str(tmp_path / "out")).problems
    assert problems == ("the table has 40 rows, published: 217060",)


def test_radiology_alone_and_no_subcaptions(folder, built, capsys) -> None:
    (folder / SUBCAPTIONS).unlink()
    found = built("medicat/radiology", folder)
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    assert sorted(rows) == sorted(key_of(number) for number in range(0, 40, 2) if number != 2)
    assert rows[key_of(0)]["subfigures"]["label"] == []
    assert "not radiology: 20" in capsys.readouterr().out


def test_wrong_files(folder, built, entries, parts, tmp_path) -> None:
    parts["subcaptions"]["A"].append(99)
    save_lines(folder / SUBCAPTIONS, [parts])
    with pytest.raises(UserError, match=r"subcaptions_public\.jsonl line 1: .*IndexError"):
        built("medicat", folder)
    parts["subcaptions"] = {}
    parts["subfigures"][0]["points"] = [[5, 5], [5, 9]]  # no area
    save_lines(folder / SUBCAPTIONS, [parts])
    found = built("medicat", folder, max_rejected="0.1")
    assert sum(map(len, found.values())) == 38
    rejected = (tmp_path / "out" / "medicat" / "all" / "rejected.jsonl").read_text()
    assert f"{key_of(0)}" in rejected
    (folder / FIGURES).write_text('{"pdf_hash": "1"}\n')
    with pytest.raises(UserError, match=r"line 1 has no fig_uri, s2_caption, radiology"):
        built("medicat", folder, name="keys")
    (folder / FIGURES).write_text(json.dumps(entries[0])[:-5])
    with pytest.raises(UserError, match=r"line 1 is not JSON .*download it again"):
        built("medicat", folder, name="cut")
    (folder / "figures").rename(folder / "images")
    with pytest.raises(UserError, match=r"missing \./figures or release/figures .*form on https"):
        built("medicat", folder, name="layout")
