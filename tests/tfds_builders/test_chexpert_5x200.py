"""Without it the five-class set could hold images of two classes, or a model be tested on images it saw."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

NAMES = load_spec("chexpert").label_names
CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def row(patient: int, view: str = "view1_frontal", **cells: str) -> dict[str, str]:
    """A row of train.csv."""
    frontal = "frontal" in view
    return {
        "Path": f"CheXpert-v1.0-small/train/patient{patient:05d}/study1/{view}.jpg",
        "Sex": "Male",
        "Age": "50",
        "Frontal/Lateral": "Frontal" if frontal else "Lateral",
        "AP/PA": "PA" if frontal else "",
        **dict.fromkeys(NAMES, ""),
        **cells,
    }


def hash_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda n: hashlib.sha256(f"medvlp-5x200:{n}".encode()).digest())


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    """Six patients of each class alone, and rows that are not exclusive, not certain or not frontal."""
    rows = [
        row(100 * (k + 1) + i, **{name: "1.0", "Fracture": "0.0"})
        for k, name in enumerate(CLASSES)
        for i in range(6)
    ]
    rows[0]["No Finding"] = "1.0"  # is ignored
    rows += [
        row(100, "view2_frontal", Atelectasis="1.0"),  # the same study
        row(900, Edema="1.0", Cardiomegaly="1.0"),
        row(901, Edema="1.0", Fracture="-1.0"),
        row(902, Edema="1.0", **{"Support Devices": "1.0"}),
        row(903, Edema="-1.0"),
        row(904, Fracture="1.0"),
        row(905, "view2_lateral", Edema="1.0"),
    ]
    valid = [{**row(1), "Path": "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"}]
    valid[0]["Edema"] = "1.0"
    folder = tmp_path / "CheXpert-v1.0-small"
    save_table(folder / "train.csv", rows)
    save_table(folder / "valid.csv", valid)
    for cells in rows + valid:
        save_image(tmp_path / cells["Path"], 20, 30)
    return folder


def test_exclusive_images_in_hash_order(folder, built, tmp_path, capsys) -> None:
    found = built("chexpert_5x200", folder, per_class="5")["test"]
    assert len(found) == 25
    np.testing.assert_array_equal(sum(e["label"] for e in found.values()), [5] * 5)
    assert {int(e["label"].sum()) for e in found.values()} == {1}
    edema = [f"train/patient{400 + i:05d}/study1/view1_frontal.jpg" for i in range(6)]
    chosen = [name for name, e in found.items() if e["label"][3]]
    assert sorted(chosen) == sorted(hash_order(edema)[:5])
    # Of the two views of patient 100 only the first one in the order can be chosen.
    assert sum(e["subject_id"] == "patient00100" for e in found.values()) <= 1
    source = pipeline.open_source("chexpert_5x200", "test", tmp_path / "out")
    assert source.label_names == CLASSES
    listed = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    printed = capsys.readouterr().out
    assert f"id list SHA-256 {listed}" in printed
    assert f"id list SHA-256 {listed}" in source.metadata["notes"]
    assert "--option exclude_5x200=yes" in printed
    assert check.check_dataset("chexpert_5x200", str(tmp_path / "out")).problems == ()


def test_only_the_five_classes_need_be_alone(folder, built, capsys) -> None:
    found = built("chexpert_5x200", folder, per_class="6", exclusive="five")["test"]
    assert "exclude=splits/test.txt of this dataset" in capsys.readouterr().out
    edema = {e["subject_id"] for e in found.values() if e["label"][3]}
    names = [f"train/patient{p:05d}/study1/view1_frontal.jpg" for p in [*range(400, 406), 901, 902]]
    assert edema == {name.split("/")[1] for name in hash_order(names)[:6]}


def test_only_chosen_images_are_needed(folder, built) -> None:
    (folder / "train" / "patient00904" / "study1" / "view1_frontal.jpg").unlink()
    assert len(built("chexpert_5x200", folder, per_class="6")["test"]) == 30
    (folder / "train" / "patient00403" / "study1" / "view1_frontal.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 30 images .*patient00403"):
        built("chexpert_5x200", folder, per_class="6", name="second")


def test_a_published_list_is_taken_instead(folder, built, save_table, tmp_path, capsys) -> None:
    """GLoRIA's list has the paths of train.csv and columns of the five classes."""
    file = tmp_path / "chexpert_5x200.csv"
    first, second = row(101, Atelectasis="1.0"), row(902, Edema="1.0")
    first = {k: v for k, v in first.items() if k in ("Path", *CLASSES)}
    # The list is right where it differs from train.csv.
    first.update({"Path": first["Path"].replace("-small", ""), "Atelectasis": "0", "Edema": "1.0"})
    save_table(file, [first, {k: second[k] for k in first}])
    found = built("chexpert_5x200", folder, ids=str(file))["test"]
    assert {name.split("/")[1]: e["label"].tolist() for name, e in found.items()} == {
        "patient00101": [0, 0, 0, 1, 0],
        "patient00902": [0, 0, 0, 1, 0],
    }
    assert "exclude=splits/test.txt of this dataset" in capsys.readouterr().out
    excluded = tmp_path / "out" / "chexpert_5x200" / "default" / "1.0.0" / "splits" / "test.txt"
    for name, listed in (("ours", excluded), ("theirs", file)):
        train = built("chexpert", folder, exclude=str(listed), name=name)["train"]
        patients = {e["subject_id"] for e in train.values()}
        assert patients.isdisjoint({"patient00101", "patient00902"})
        assert len(train) == 35
    save_table(file, [{**first, "Path": "CheXpert-v1.0/train/patient7/study1/view1_frontal.jpg"}])
    with pytest.raises(UserError, match=r"lists train/patient7/study1/view1_frontal\.jpg, which"):
        built("chexpert_5x200", folder, ids=str(file), name="other")
    with pytest.raises(UserError, match=r"ids='none\.csv': no such file"):
        built("chexpert_5x200", folder, ids="none.csv", name="other")


def test_too_few_images_of_a_class(folder, built) -> None:
    with pytest.raises(
        UserError, match=r"train\.csv has 6 studies with Atelectasis alone, 200 are"
    ):
        built("chexpert_5x200", folder)
    with pytest.raises(UserError, match="exclusive='some': expected all or five"):
        built("chexpert_5x200", folder, exclusive="some")
    (folder / "train.csv").unlink()
    with pytest.raises(UserError, match=r"not a complete chexpert_5x200: missing train\.csv"):
        built("chexpert_5x200", folder)


def test_pretraining_leaves_their_patients_out(
    tmp_path, built, save_image, save_table, capsys
) -> None:
    """203 patients a class, so that the default of 200 can be chosen."""
    folder = tmp_path / "full"
    rows = [row(300 * k + i, **{n: "1.0"}) for k, n in enumerate(CLASSES) for i in range(203)]
    rows.append(row(0, "view2_lateral", Atelectasis="1.0"))
    save_table(folder / "train.csv", rows)
    save_table(folder / "valid.csv", [row(9000)])
    for cells in [*rows, row(9000)]:
        save_image(folder / cells["Path"].partition("/")[2], 16, 16)
    test = built("chexpert_5x200", folder)["test"]
    assert len(test) == 1_000
    listed = capsys.readouterr().out.split("id list SHA-256 ")[1][:64]
    found = built("chexpert", folder, exclude_5x200="yes")
    chosen = {e["subject_id"] for e in test.values()}
    left = {e["subject_id"] for e in found["train"].values()}
    assert len(left) == 15
    assert left.isdisjoint(chosen)
    printed = capsys.readouterr().out
    assert f"left out the patients of 5x200, id list SHA-256 {listed}" in printed
    assert "dropped, patient of 5x200: 100" in printed
    assert "(published: 223414)" not in printed
    holdout = built("chexpert/holdout", folder, exclude_5x200="yes")
    assert {e["subject_id"] for rows in holdout.values() for e in rows.values()} == left | {
        "patient09000"
    }


def test_exclude_file_names_images_studies_or_patients(folder, built, tmp_path) -> None:
    file = tmp_path / "exclude.txt"
    file.write_text(
        "patient00100\n\npatient00900/study1\nvalid/patient64541/study1/view1_frontal.jpg\n"
    )
    found = built("chexpert", folder, exclude=str(file))
    assert "validation" not in found
    patients = {e["subject_id"] for e in found["train"].values()}
    assert patients.isdisjoint({"patient00100", "patient00900"})
    metadata = pipeline.open_source("chexpert/official", "train", tmp_path / "out").metadata
    # Both views of patient 100, one of 900, one of validation.
    assert metadata["dropped"] == {"excluded_patient": 4, "rejected": 0}
    assert metadata["expected_counts"] == {}
    assert check.check_dataset("chexpert/official", str(tmp_path / "out")).ok
    file.write_text("patient00100\n")
    with pytest.raises(UserError, match="tables have changed"):
        built("chexpert", folder, exclude=str(file))
    file.write_text("patient00100\npatient7\n")
    with pytest.raises(
        UserError, match=r"exclude\.txt lists patient7 \(1 of 2 lines are unknown\)"
    ):
        built("chexpert", folder, exclude=str(file), name="other")
    with pytest.raises(UserError, match="exclude='nowhere': no such file"):
        built("chexpert", folder, exclude="nowhere", name="other")
