"""Without it an Open-i image could get another report's text, or one study be in two splits."""

from __future__ import annotations

import json
import pathlib
import tarfile
from xml.sax.saxutils import escape

import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import fetch

NAMES = load_spec("openi").label_names


def save_report(folder: pathlib.Path, number: int, report: dict) -> None:
    """One XML file in the official form."""
    abstract = "".join(
        f'<AbstractText Label="{name.upper()}">{escape(report.get(name, ""))}</AbstractText>'
        for name in ("comparison", "indication", "findings", "impression")
    )
    mesh = "".join(f"<major>{escape(heading)}</major>" for heading in report["mesh"])
    images = "".join(
        f'<parentImage id="{image}"><figureId>F{k}</figureId><caption>Dummy</caption>'
        f'<panel type="single"><url>/hadoop/{image}.jpg</url></panel></parentImage>'
        for k, image in enumerate(report["images"], start=1)
    )
    text = (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="CXR{number}"/>'
        f'<pmcId id="{number}"/><docSource>CXR</docSource><MedlineCitation Owner="Indiana University">'
        f'<Article PubModel="Electronic"><Abstract>{abstract}</Abstract></Article></MedlineCitation>'
        f"<MeSH>{mesh}<automatic>dummy</automatic></MeSH>{images}</eCitation>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.xml").write_text(text, "utf-8")


@pytest.fixture
def folder(tmp_path, save_image) -> pathlib.Path:
    folder = tmp_path / "openi"
    for number in range(1, 21):
        report = {
            "findings": f"Dummy lungs number {number} are < clear & XXXX.",
            "impression": "Nothing invented.",
            "indication": "Invented cough",
            "comparison": "None.",
            "mesh": ["normal"],
            "images": [f"CXR{number}_{number}_IM-00{number:02d}-{view}001" for view in (1, 2)],
        }
        if number == 1:
            report["mesh"] = ["Cardiomegaly/borderline", "Catheters, Indwelling/right", "Markings"]
        if number == 2:
            report["mesh"] = ["No Indexing"]
        if number == 3:
            report.update(findings="", impression="")
        if number == 4:
            report["images"] = []
        save_report(folder / "ecgen-radiology", number, report)
        for image in report["images"]:
            save_image(folder / "NLMCXR_png" / f"{image}.png")
    return folder


def test_rows_labels_and_splits(folder, built, tmp_path, capsys) -> None:
    found = built("openi", folder)
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    assert len(rows) == 36  # 20 reports of two images, one blank, one without images
    split_of = {key: split for split, examples in found.items() for key in examples}
    for number in range(1, 21):
        if number not in (3, 4):
            pair = {split_of[f"CXR{number}_{number}_IM-00{number:02d}-{v}001"] for v in (1, 2)}
            assert len(pair) == 1
    assert set(split_of.values()) == {"train", "validation", "test"}
    first = rows["CXR1_1_IM-0001-1001"]
    assert first["text"] == (
        "FINDINGS: Dummy lungs number 1 are < clear & XXXX.\nIMPRESSION: Nothing invented."
    )
    assert (first["indication"], first["comparison"]) == ("Invented cough", "None.")
    assert first["mesh"] == ["Cardiomegaly/borderline", "Catheters, Indwelling/right", "Markings"]
    positive = {n for n, v in zip(NAMES, first["label"].tolist(), strict=True) if v == 1}
    assert positive == {"Cardiomegaly", "Support Devices"}
    assert sorted(set(first["label"].tolist())) == [0, 1]
    assert set(rows["CXR2_2_IM-0002-1001"]["label"].tolist()) == {-2}
    assert "rows in the table 38 (published: 7470)" in capsys.readouterr().out
    report = check.check_dataset("openi", str(tmp_path / "out"))
    assert report.problems == ("the table has 38 rows, published: 7470",)


def test_blank_texts_can_be_kept_and_views_be_added(folder, built, save_table) -> None:
    rows = [
        {"uid": "1", "filename": "1_IM-0001-1001.dcm.png", "projection": "Frontal"},
        {"uid": "1", "filename": "1_IM-0001-2001.dcm.png", "projection": "Lateral"},
    ]
    save_table(folder / "indiana_projections.csv", rows)
    found = built("openi", folder, blank_text="keep")
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    assert len(rows) == 38
    assert rows["CXR1_1_IM-0001-1001"]["view_position"] == "FRONTAL"
    assert rows["CXR1_1_IM-0001-2001"]["view_position"] == "LATERAL"
    assert rows["CXR5_5_IM-0005-1001"]["view_position"] == ""


def test_errors_name_the_remedy(folder, built) -> None:
    broken = folder / "ecgen-radiology" / "5.xml"
    text = broken.read_text()
    broken.write_text(text[:100])
    with pytest.raises(UserError, match=r"5\.xml is not XML .*unpack NLMCXR_reports"):
        built("openi", folder)
    broken.write_text(text.replace("uId", "uid"))
    with pytest.raises(UserError, match=r"5\.xml has no element uId"):
        built("openi", folder)
    broken.write_text(text)
    (folder / "NLMCXR_png" / "CXR5_5_IM-0005-1001.png").unlink()
    with pytest.raises(UserError, match=r"1 of 36 images .*CXR5_5_IM-0005-1001\.png"):
        built("openi", folder)
    (folder / "NLMCXR_png").rename(folder / "png")
    with pytest.raises(UserError, match=r"missing NLMCXR_png or images .*tar xzf NLMCXR_png\.tgz"):
        built("openi", folder)
    for file in (folder / "ecgen-radiology").iterdir():
        file.unlink()
    (folder / "png").rename(folder / "images")
    with pytest.raises(UserError, match=r"holds no \.xml files"):
        built("openi", folder)


def test_fetched_archives_fill_the_layout(folder, built) -> None:
    builder = load_spec("openi").builder_class()
    fetched = folder.parent / "fetched"
    for download, inside in zip(builder.DOWNLOADS, ("ecgen-radiology", "."), strict=True):
        place = fetched / download.path
        place.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(place, "w:gz") as archive:
            archive.add(folder / ("NLMCXR_png" if inside == "." else inside), inside)
    fetch(builder.DOWNLOADS, fetched)  # what is there is not fetched again, only unpacked
    assert sum(map(len, built("openi", fetched).values())) == 36


def test_real_reports(data_dir, tmp_path, built, save_image) -> None:
    lines = (data_dir / "openi_reports" / "reports.jsonl").read_text("utf-8").splitlines()
    reports = [json.loads(line) for line in lines[:40]]
    folder = tmp_path / "real"
    for report in reports:
        report.update(mesh=report["mesh_major"], images=report["image_ids"])
        save_report(folder / "ecgen-radiology", int(report["uid"][3:]), report)
        for image in report["images"]:
            save_image(folder / "images" / f"{image}.png", 20, 20)
    found = built("openi", folder)
    rows = {key: e for examples in found.values() for key, e in examples.items()}
    with_text = [r for r in reports if r["findings"].strip() or r["impression"].strip()]
    assert set(rows) == {image for r in with_text for image in r["images"]}
    for report in with_text:
        for image in report["images"]:
            assert rows[image]["findings"] == " ".join(report["findings"].split())
    source = pipeline.open_source("openi", "train", tmp_path / "out")
    assert source.metadata["dropped"]["rejected"] == 0
