"""Without it improving could be stored as worsening, or a pair be made of the wrong two images."""

from __future__ import annotations

import pathlib

import pytest

from medvlp_jax.data import check, pipeline
from medvlp_jax.data.studies import index_studies
from medvlp_jax.errors import UserError

STEMS = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
A1, A2, A3 = (f"p10/p10000032/s5000000{n}/aa-0{n}" for n in (1, 2, 3))
B1, B2 = (f"p11/p11000001/s5000001{n}/bb-0{n}" for n in (1, 2))
SENTENCES = (
    ("The dummy effusion has grown.", "The dummy effusion is larger.", "paraphrase"),
    ("The dummy effusion has grown.", "The dummy effusion, it is smaller.", "contradiction"),
)


def pair(current: str, previous: str, **changes: str) -> dict[str, str]:
    """A row of the image table."""
    row = {
        "dicom_id": current,
        "previous_dicom_id": previous,
        "study_id": current.split("/")[2][1:],
        "previous_study_id": previous.split("/")[2][1:],
        "subject_id": current.split("/")[1][1:],
    }
    for stem in STEMS:
        change = changes.get(stem, "")
        row[f"{stem}_progression"] = change
        row[f"{stem}_label_quality"] = "one_expert" if change else ""
    return row


@pytest.fixture
def folder(tmp_path, save_image, save_table) -> pathlib.Path:
    folder = tmp_path / "mimic"
    rows = [
        pair(A2, A1, edema="worsening", pneumothorax="stable"),
        pair(A3, A2, consolidation="improving"),
        pair(B2, B1, edema="improving"),
    ]
    save_table(folder / "MS_CXR_T_temporal_image_classification_v1.0.0.csv", rows)
    sentences = [
        dict(zip(("sentence_1", "sentence_2", "category"), s, strict=True)) for s in SENTENCES
    ]
    save_table(folder / "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv", sentences)
    for name in (A1, A2, A3, B1, B2):
        save_image(folder / "files" / f"{name}.jpg", 40, 50)
    return folder


def test_changes_and_their_images(folder, built, tmp_path, capsys) -> None:
    found = built("ms_cxr_t", folder)["test"]
    assert set(found) == {"aa-01", "aa-02", "aa-03", "bb-01", "bb-02"}
    second = found["aa-02"]
    assert second["progression"].tolist() == [-2, 2, -2, -2, 1]
    assert list(second["label_quality"]) == ["", "one_expert", "", "", "one_expert"]
    source = pipeline.open_source("ms_cxr_t/images", "test", tmp_path / "out")
    known = dict(zip(source.label_names, second["label"].tolist(), strict=True))
    assert {name: v for name, v in known.items() if v != -2} == {
        "Edema, improving": 0,
        "Edema, stable": 0,
        "Edema, worsening": 1,
        "Pneumothorax, improving": 0,
        "Pneumothorax, stable": 1,
        "Pneumothorax, worsening": 0,
    }
    assert (second["study_id"], second["prior_study_id"]) == ("50000002", "50000001")
    assert (found["aa-03"]["prior_image_id"], found["aa-03"]["subject_id"]) == ("aa-02", "10000032")
    for name in ("aa-01", "bb-01"):  # only the earlier one of a pair
        assert set(found[name]["label"].tolist()) == {-2}
        assert found[name]["prior_study_id"] == ""
    printed = capsys.readouterr().out
    assert "image pairs: 3; labels: 4 (published: 1326): Consolidation 1, Edema 2" in printed
    assert "2 of the images are only the earlier one" in printed
    assert check.check_dataset("ms_cxr_t/images", str(tmp_path / "out")).ok


def test_the_pipeline_finds_the_earlier_images(folder, built, tmp_path) -> None:
    built("ms_cxr_t", folder)
    source = pipeline.open_source("ms_cxr_t/images", "test", tmp_path / "out")
    names = [e["image_id"] for e in source]
    prior = index_studies(source).prior
    found = {n: names[p] for n, p in zip(names, prior.tolist(), strict=True) if p >= 0}
    assert found == {"aa-02": "aa-01", "aa-03": "aa-02", "bb-02": "bb-01"}


def test_an_image_with_two_earlier_ones_is_two_examples(
    folder, built, save_table, tmp_path
) -> None:
    file = folder / "MS_CXR_T_temporal_image_classification_v1.0.0.csv"
    save_table(file, [pair(A3, A1, edema="stable"), pair(A3, A2, edema="worsening")])
    built("ms_cxr_t", folder)
    source = pipeline.open_source("ms_cxr_t/images", "test", tmp_path / "out")
    priors = [e["prior_image_id"] for e in source if e["image_id"] == "aa-03"]
    assert sorted(priors) == ["aa-01", "aa-02"]


def test_sentences_need_no_images(folder, built, tmp_path, capsys) -> None:
    (folder / "files").rename(tmp_path / "elsewhere")
    found = built("ms_cxr_t/sentences", folder)["test"]
    first, second = (found[key] for key in sorted(found))
    assert (first["sentence_1"], first["sentence_2"], first["category"]) == SENTENCES[0]
    assert second["sentence_2"] == SENTENCES[1][1]
    assert [int(e["label"][0]) for e in (first, second)] == [1, 0]
    assert first["text"] == SENTENCES[0][0]
    assert "image" not in first
    assert "(published: 361)" in capsys.readouterr().out
    report = check.check_dataset("ms_cxr_t/sentences", str(tmp_path / "out"))
    assert report.problems == ("test has 2 examples, published: 361",)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "image_classification",
            "worsening",
            "worse",
            r"line 2: edema_progression is 'worse', exp",
        ),
        ("image_classification", A3, "aa-03", r"line 3: 'aa-03' is no path of MIMIC-CXR"),
        ("image_classification", "previous_dicom_id", "prior", "has no column previous_dicom_id"),
        ("sentence_similarity", "contradiction", "opposite", "line 3: category is 'opposite', exp"),
    ],
)
def test_wrong_tables_are_explained(folder, built, table, old, new, message) -> None:
    file = folder / f"MS_CXR_T_temporal_{table}_v1.0.0.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    name = "ms_cxr_t/sentences" if table.startswith("sentence") else "ms_cxr_t"
    with pytest.raises(UserError, match=message):
        built(name, folder)


def test_missing_files_are_named(folder, built) -> None:
    (folder / "files" / f"{B1}.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 5 images .*bb-01\.jpg"):
        built("ms_cxr_t", folder)
    (folder / "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv").unlink()
    with pytest.raises(
        UserError, match=r"missing MS_CXR_T_temporal_sentence_similarity.*physionet"
    ):
        built("ms_cxr_t/sentences", folder)
