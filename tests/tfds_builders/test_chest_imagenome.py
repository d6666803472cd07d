"""Without it attributes could be given to another region, gold's patients train a model tested on them."""

from __future__ import annotations

import json
import pathlib
import zipfile

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.errors import UserError

PATHS = {
    name: f"files/p{subject[:2]}/p{subject}/s{study}/{name}.dcm"
    for name, subject, study in (
        ("aa-01", "10000032", "50000001"),
        ("aa-02", "10000032", "50000002"),
        ("bb-01", "11000001", "50000003"),
        ("cc-01", "12000001", "50000004"),
        ("dd-01", "13000001", "50000005"),
        ("ee-01", "14000001", "50000006"),
    )
}
SPLITS = {"train": ("aa-01", "aa-02", "dd-01", "ee-01"), "valid": ("bb-01",), "test": ("cc-01",)}
GOLD, WITHOUT_GRAPH = "dd-01", "ee-01"


def list_row(name: str) -> dict[str, str]:
    _, _, patient, study, _ = PATHS[name].split("/")
    return {
        "subject_id": patient[1:],
        "study_id": study[1:],
        "dicom_id": name,
        "path": PATHS[name],
        "ViewPosition": "AP",
    }


def scene_graph(name: str) -> dict:
    """As published, without the fields that are not read."""

    def region(region_name: str, *edges: int) -> dict:
        x1, y1, x2, y2 = edges
        return {
            "object_id": f"{name}_{region_name}",
            "x1": 0, "y1": 0, "x2": 1, "y2": 1, "width": 1, "height": 1,
            "bbox_name": region_name,
            "name": region_name.capitalize(),
            "original_x1": x1, "original_y1": y1, "original_x2": x2, "original_y2": y2,
            "original_width": x2 - x1, "original_height": y2 - y1,
        }  # fmt: skip

    def said(region_name: str, attributes: list[list[str]], phrases: list[str]) -> dict:
        return {
            region_name: True,
            "bbox_name": region_name,
            "attributes": attributes,
            "phrases": phrases,
            "severity_cues": [[] for _ in phrases],
        }

    opacity, effusion = (
        "anatomicalfinding|yes|lung opacity",
        "anatomicalfinding|no|pleural effusion",
    )
    return {
        "image_id": name,
        "viewpoint": "AP",
        "gender": "F",
        "age_decile": "50-60",
        "objects": [
            region("right lung", 10, 8, 25, 24),
            region("left lung", 25, 8, 60, 24),  # leads out of the image
            region("trachea", 20, 5, 20, 10),  # empty
        ],
        "attributes": [
            said(
                "right lung",
                [[opacity, effusion], [opacity]],
                ["A dummy\n opacity.", "It is stable."],
            ),
            said("left chest wall", [["disease|yes|pneumonia"]], ["No box here."]),
        ],
        "relationships": [],
    }


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "mimic"
    silver, gold = folder / "silver_dataset", folder / "gold_dataset"
    for split, names in SPLITS.items():
        rows = [{"": str(i), **list_row(name)} for i, name in enumerate(names)]
        save_table(silver / "splits" / f"{split}.csv", rows)
    save_table(silver / "splits" / "images_to_avoid.csv", [list_row(GOLD)])
    with zipfile.ZipFile(silver / "scene_graph.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in PATHS:
            if name != WITHOUT_GRAPH:
                text = json.dumps(scene_graph(name))
                archive.writestr(f"scene_graph/{name}_SceneGraph.json", text)
    edges = dict(
        zip(
            ("original_x1", "original_y1", "original_x2", "original_y2"),
            (5, 10, 25, 30),
            strict=True,
        )
    )
    boxes = [
        {"image_id": f"{GOLD}.dcm", "bbox_name": name, **edges, "annotator": "C"}
        for name in ("right lung", "left lung")
    ]
    boxes.append({**boxes[0], "bbox_name": "trachea", **dict.fromkeys(edges, "")})
    save_table(gold / "gold_bbox_coordinate_annotations_1000images.csv", boxes)
    columns = (
        "patient_id",
        "study_id",
        "image_id",
        "bbox",
        "relation",
        "label_name",
        "categoryID",
        "context",
    )
    lines = [
        (
            "13000001",
            "50000005",
            f"{GOLD}.dcm",
            "right lung",
            "1",
            "atelectasis",
            "anatomicalfinding",
            "yes",
        ),
        (
            "13000001",
            "50000005",
            f"{GOLD}.dcm",
            "right lung",
            "0",
            "pneumothorax",
            "anatomicalfinding",
            "yes",
        ),
        (
            "13000001",
            "50000005",
            f"{GOLD}.dcm",
            "left lung",
            "1",
            "consolidation",
            "anatomicalfinding",
            "no",
        ),
    ]
    table = "\n".join("\t".join(line) for line in (columns, *lines)) + "\n"
    (gold / "gold_object_attribute_with_coordinates.txt").write_text(table)
    save_table(folder / "utils" / "cxr-record-list_view.csv", [list_row(name) for name in PATHS])
    for path in PATHS.values():
        save_image(folder / path.replace(".dcm", ".jpg"), 40, 50)
    return folder


def check_first(example: dict) -> None:
    regions = example["regions"]
    assert list(regions["name"]) == ["right lung", "left lung"]
    np.testing.assert_allclose(
        regions["bbox"], [[0.2, 0.2, 0.6, 0.5], [0.2, 0.5, 0.6, 1.0]], atol=1e-6
    )
    assert list(regions["attributes"]) == [
        "anatomicalfinding|yes|lung opacity\nanatomicalfinding|no|pleural effusion",
        "",
    ]
    assert list(regions["phrases"]) == ["A dummy opacity.\nIt is stable.", ""]
    assert example["label"].tolist() == [1, 0, -2, -2, -2, -2, -2, -2, 1]


def test_regions_attributes_and_labels(folder, built, tmp_path, capsys) -> None:
    found = built("chest_imagenome", folder)
    assert {s: set(rows) for s, rows in found.items()} == {
        "train": {"aa-01", "aa-02"},
        "validation": {"bb-01"},
        "test": {"cc-01"},
    }
    first = found["train"]["aa-01"]
    check_first(first)
    assert (first["subject_id"], first["study_id"]) == ("10000032", "50000001")
    assert (first["view_position"], first["sex"]) == ("AP", "F")
    metadata = pipeline.open_source("chest_imagenome/silver", "train", tmp_path / "out").metadata
    assert metadata["dropped"] == {"patient_of_gold": 1, "no_scene_graph": 1, "rejected": 0}
    assert metadata["rows"] == 6
    assert "dropped, patient of gold: 1" in capsys.readouterr().out
    assert check.check_dataset("chest_imagenome/silver", str(tmp_path / "out")).ok


def test_unpacked_scene_graphs_in_a_subfolder(folder, built) -> None:
    place = folder / "chest-imagenome"
    place.mkdir()
    (folder / "silver_dataset").rename(place / "silver_dataset")
    archive = place / "silver_dataset" / "scene_graph.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(place / "silver_dataset")
    archive.unlink()
    check_first(built("chest_imagenome", folder)["train"]["aa-01"])


def test_gold_is_test(folder, built, tmp_path, capsys) -> None:
    found = built("chest_imagenome/gold", folder)
    assert {s: set(rows) for s, rows in found.items()} == {"test": {GOLD}}
    example = found["test"][GOLD]
    assert list(example["regions"]["name"]) == ["right lung", "left lung"]
    np.testing.assert_allclose(example["regions"]["bbox"][0], [0.25, 0.1, 0.75, 0.5], atol=1e-6)
    assert list(example["regions"]["attributes"]) == [
        "anatomicalfinding|yes|atelectasis",
        "anatomicalfinding|no|consolidation",
    ]
    assert example["label"].tolist() == [-2, -2, 1, -2, -2, -2, 0, -2, -2]
    printed = capsys.readouterr().out
    assert "1 images (published: 1000)" in printed
    assert "--option exclude=FILE" in printed


def test_a_damaged_scene_graph_is_rejected(folder, built, tmp_path) -> None:
    place = folder / "silver_dataset" / "scene_graph"
    place.mkdir()
    graph = scene_graph("aa-02")
    del graph["objects"][0]["original_x2"]
    for name, text, reason in (
        ("keys", json.dumps(graph), "objects entry 1 has no original_x2"),
        ("json", '{"objects": [', "aa-02_SceneGraph.json is not JSON"),
    ):
        (place / "aa-02_SceneGraph.json").write_text(text)
        found = built("chest_imagenome", folder, max_rejected="0.5", name=name)
        assert set(found["train"]) == {"aa-01"}
        assert reason in (tmp_path / f"out/chest_imagenome/{name}/rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "silver",
            "silver_dataset/splits/valid.csv",
            "files/p11/",
            "x/",
            r"valid\.csv line 2: 'x/p11",
        ),
        ("silver", "silver_dataset/splits/test.csv", "dicom_id", "image", "has no column dicom_id"),
        (
            "gold",
            "gold_dataset/gold_bbox_coordinate_annotations_1000images.csv",
            ",5,",
            ",a,",
            "line 2: or",
        ),
        (
            "gold",
            "utils/cxr-record-list_view.csv",
            "dd-01",
            "zz-01",
            "does not list dd-01 of gold_bbox",
        ),
        (
            "gold",
            "gold_dataset/gold_object_attribute_with_coordinates.txt",
            "context",
            "c",
            "no column con",
        ),
    ],
)
def test_wrong_tables_are_explained(folder, built, name, file, old, new, message) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        built(f"chest_imagenome/{name}", folder)


def test_missing_files_are_named(folder, built) -> None:
    (folder / PATHS["cc-01"].replace(".dcm", ".jpg")).unlink()
    with pytest.raises(UserError, match=r"1 of 4 images .*cc-01\.jpg"):
        built("chest_imagenome", folder)
    archive = folder / "silver_dataset" / "scene_graph.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"scene_graph\.zip is not a complete zip file"):
        built("chest_imagenome", folder)
    archive.unlink()
    with pytest.raises(UserError, match=r"missing silver_dataset/scene_graph\.zip .*physionet"):
        built("chest_imagenome", folder)
