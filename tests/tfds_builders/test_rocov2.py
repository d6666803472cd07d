"""Without it a ROCOv2 figure could get another figure's caption, concepts or licence."""

from __future__ import annotations

import pathlib
import shutil
import zipfile

import pytest

from medvlp_jax.data import check
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

PARTS = {"train": range(1, 7), "valid": range(7, 9), "test": range(9, 12)}


def name_of(part: str, number: int) -> str:
    return f"ROCOv2_2023_{part}_{number:06d}"


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    """Files as on Zenodo; the images of the test split are unpacked."""
    folder, licences = tmp_path / "rocov2", []
    for part, numbers in PARTS.items():
        names = [name_of(part, number) for number in numbers]
        captions = [{"ID": n, "Caption": f'Dummy figure {n}, "5 µm"\u2028wide.'} for n in names]
        concepts = [{"ID": n, "CUIs": f"C0000001;C00{i:05d}"} for i, n in enumerate(names)]
        if part == "test":
            captions[0]["Caption"] = " "
            concepts.pop()
        save_table(folder / f"{part}_captions.csv", captions)
        save_table(folder / f"{part}_concepts.csv", concepts)
        save_table(folder / f"{part}_concepts_manual.csv", [{"ID": names[0], "CUIs": "C0000009"}])
        for name, number in zip(names, numbers, strict=True):
            save_image(folder / part / f"{name}.jpg", 30, 40 + number)
            article = "PMC1" if part == "test" else f"PMC{number}"
            licences.append(
                {
                    "ID": name,
                    "PMCID": article,
                    "Attribution": f"CC BY [Dummy et al. ({number})]",
                    "Link": f"https://example.org/{article}",
                }
            )
        if part != "test":
            with zipfile.ZipFile(folder / f"{part}_images.zip", "w") as archive:
                for name in names:
                    archive.write(folder / part / f"{name}.jpg", f"{part}/{name}.jpg")
            shutil.rmtree(folder / part)
    save_table(folder / "license_information.csv", licences[:-1])
    save_table(folder / "cui_mapping.csv", [{"CUI": "C0000001", "Canonical name": "Dummy"}])
    return folder


def test_captions_concepts_and_licences(folder, built, tmp_path, capsys) -> None:
    found = built("rocov2", folder, size="0")
    assert {split: sorted(rows) for split, rows in found.items()} == {
        "train": [name_of("train", n) for n in range(1, 7)],
        "validation": [name_of("valid", n) for n in (7, 8)],
        "test": [name_of("test", n) for n in (10, 11)],
    }
    second = found["train"][name_of("train", 2)]
    assert second["text"] == f'Dummy figure {name_of("train", 2)}, "5 µm"\u2028wide.'
    assert second["cuis"] == ["C0000001", "C0000001"[:4] + "0001"]
    assert second["concepts"] == ["Dummy", "Dummy"]
    assert second["cuis_manual"] == []
    assert second["license"] == "CC BY [Dummy et al. (2)]"
    assert second["source"] == "https://example.org/PMC2"
    assert second["subject_id"] == "PMC2"
    assert second["label"].shape == (0,)
    assert found["train"][name_of("train", 1)]["cuis_manual"] == ["C0000009"]
    last = found["test"][name_of("test", 11)]
    assert (last["cuis"], last["license"]) == ([], "")
    assert last["subject_id"] == f"image:{name_of('test', 11)}"
    printed = capsys.readouterr().out
    assert "rows in the table 11 (published: 79789)" in printed
    assert "blank text: 1" in printed
    assert "1 articles have figures in more than one of the published splits" in printed
    problems = check.check_dataset("rocov2", str(tmp_path / "out")).problems
    assert "1 patients occur in both test and train" in problems


def test_optional_tables_may_be_missing(folder, built) -> None:
    for file in (*folder.glob("*_manual.csv"), folder / "cui_mapping.csv"):
        file.unlink()
    first = built("rocov2", folder)["train"][name_of("train", 1)]
    assert (first["cuis"], first["cuis_manual"], first["concepts"]) == (
        ["C0000001", "C0000000"],
        [],
        [],
    )


def test_missing_files_and_damaged_tables(folder, built) -> None:
    (folder / "test" / f"{name_of('test', 10)}.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images .*test_000010\.jpg.*zenodo"):
        built("rocov2", folder)
    assert len(built("rocov2", folder, missing_images="skip")["test"]) == 1
    (folder / "valid_concepts.csv").write_text("ID,Concepts\n", "utf-8")
    with pytest.raises(UserError, match=r"valid_concepts\.csv has no column CUIs"):
        built("rocov2", folder, missing_images="skip", name="columns")
    (folder / "valid_concepts.csv").unlink()
    (folder / "license_information.csv").unlink()
    with pytest.raises(
        UserError, match=r"missing license_information\.csv .*valid_concepts\.csv \(concepts"
    ):
        built("rocov2", folder, name="other")


def test_downloads_fill_the_layout() -> None:
    builder = load_spec("rocov2").builder_class()
    paths = {download.path for download in builder.DOWNLOADS}
    assert {"license_information.csv", "test_images.zip", "valid_captions.csv"} < paths
    assert len(paths) == 14
    assert all(
        d.url.startswith("https://zenodo.org/records/10821435/files/") for d in builder.DOWNLOADS
    )
