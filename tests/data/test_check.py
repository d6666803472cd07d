"""Without these, a leak between training and test would stay unseen until somebody trusts the result."""

from __future__ import annotations

import json
from collections import Counter

from medvlp_jax import __main__ as cli
from medvlp_jax.data import check, pipeline
from medvlp_jax.data.duplicates import image_hash
from medvlp_jax.data.images import decode_image
from tfds_builders.stored_images import stored_bytes


def test_report_of_a_clean_dataset(small) -> None:
    report = check.check_dataset("image_text_folder", small)
    assert report.counts == {"train": 23, "validation": 10, "test": 5}
    assert report.ok
    assert report.prevalence["even"]["train"] == (12, 23)
    assert report.prevalence["rare"]["train"] == (1, 22)  # one row is blank: unknown
    assert "no problems found" in str(report)
    assert "12/23  52.2%" in str(report)
    assert report.texts["train"] == {"blank": 0, "distinct": 23, "repeated": 0}
    assert report.patients == {"train": 12, "validation": 6, "test": 3}
    assert report.duplicates == ()


def test_json_holds_everything(small) -> None:
    report = check.check_dataset("image_text_folder", small)
    read = json.loads(report.to_json())
    assert read["ok"] is True
    assert read["counts"] == report.counts
    assert read["prevalence"]["even"]["train"] == [12, 23]


def test_command_writes_page_and_json(small, tmp_path, capsys) -> None:
    out, sheet = tmp_path / "check.json", tmp_path / "check.png"
    arguments = ["data", "check", "image_text_folder", "--data-dir", small]
    assert cli.main([*arguments, "--out", str(out), "--sheet", str(sheet), "--seed", "3"]) == 0
    assert json.loads(out.read_text())["counts"]["train"] == 23
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    assert "no problems found" in capsys.readouterr().out
    assert cli.main([*arguments, "--out", str(tmp_path / "missing" / "a.json")]) == 2
    assert "give another file" in capsys.readouterr().err


def remember(rows: list[tuple[str, str, str, bytes | None]]) -> check._Seen:
    """What is known after reading (split, patient, text, image)."""
    seen = check._Seen()
    for number, (split, patient, text, image) in enumerate(rows):
        example = {"subject_id": patient, "text": text, "image_id": f"{number}.png"}
        seen.add(example if image is None else {**example, "image": image}, split, number)
    return seen


def test_copies_blank_and_repeated_texts(small) -> None:
    source = pipeline.open_source("image_text_folder", "train", small)
    a, b = source[0]["image"], source[9]["image"]
    seen = remember(
        [
            ("train", "p1", "No effusion.", a),
            ("train", "p2", "no  EFFUSION.", b),
            ("train", "p3", "", b),
            ("test", "p3", "Edema.", a),
            ("test", "p4", "No effusion.", None),
        ]
    )
    places, groups = check._image_places(seen)
    assert groups == (
        (("train", "0.png"), ("test", "3.png")),
        (("train", "1.png"), ("train", "2.png")),
    )
    assert check._leaks(places, "images") == ["1 images occur in both test and train"]
    assert check._leaks(seen.patients, "patients") == ["1 patients occur in both test and train"]
    assert check._text_counts(seen, "train") == {"blank": 1, "distinct": 1, "repeated": 2}
    assert check._notes(seen, places, {"train": 3, "test": 2}) == [
        "1 blank texts in train",
        "1 texts occur more than once in train (2 of 3 examples)",
        "1 images occur more than once in train (2 of 3 examples)",
        "1 texts occur in more than one split",
    ]


def test_volumes_are_compared_by_their_middle_slice(small) -> None:
    source = pipeline.open_source("image_text_folder", "train", small)
    slices = [source[n]["image"] for n in (0, 9, 0)]
    seen = check._Seen()
    seen.add({"slices": slices, "text": "x"}, "train", 0)
    assert seen.hashes == [image_hash(source[9]["image"])]
    assert seen.images == [("train", "#0")]


def test_long_lists_are_cut_in_print_only() -> None:
    groups = tuple((("train", f"{n}a.png"), ("train", f"{n}b.png")) for n in range(30))
    leak = (("train", "x.png"), ("test", "y.png"), *(("train", f"z{n}.png") for n in range(5)))
    lines = check._duplicate_lines((*groups, leak))
    assert lines[0].startswith("31 groups")
    assert lines[1] == "  train x.png, test y.png, train z0.png, train z1.png and 3 more"
    assert lines[-1] == "  and 21 more groups; --out FILE.json has all"
    assert len(lines) == 12


def test_duplicates_of_real_images_under_other_names(data_dir, tmp_path) -> None:
    """covid_cxr holds case images of Radiopaedia a second time, recompressed and renamed."""
    files = sorted((data_dir / "covid_cxr" / "images").iterdir())
    wanted = [f for f in files if f.name.startswith(("16660_", "covid-19-rapidly-progressive"))]
    seen = check._Seen()
    for number, file in enumerate(wanted):
        image = stored_bytes(decode_image(file.read_bytes()), size=256, quality=95)
        seen.add({"image": image, "image_id": file.name}, "train", number)
    _, groups = check._image_places(seen)
    found = {tuple(name for _, name in group) for group in groups}
    day = "covid-19-rapidly-progressive-acute-respiratory-distress-syndrome-ards-"
    assert found == {
        ("16660_2_1.jpg", f"{day}admission.jpg"),
        ("16660_3_1.jpg", f"{day}day-1.jpg"),
        ("16660_4_1.jpg", f"{day}day-2.jpg"),
        ("16660_5_1.jpg", f"{day}day-3.jpg"),
    }


def test_leaks_and_lost_rows_are_problems() -> None:
    places = {
        "p1": Counter(train=2),
        "p2": Counter(train=1, test=1),
        "p3": Counter(test=3, train=1),
    }
    assert check._leaks(places, "patients") == ["2 patients occur in both test and train"]
    metadata = {"rows": 10, "dropped": {"blank_text": 2, "rejected": 1}}
    assert check._recorded_counts(metadata, {"train": 5, "test": 2}) == []
    (problem,) = check._recorded_counts(metadata, {"train": 5, "test": 1})
    assert "6 examples are here instead of 7" in problem
