"""Without these, a denied finding could become a positive triplet, or a finding stand at the wrong place."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvlp_jax.data import triplets
from medvlp_jax.data.triplets import Triplet, Vocabulary, load_vocabulary, report_triplets
from medvlp_jax.errors import UserError


@pytest.fixture(scope="module")
def medklip() -> Vocabulary:
    return load_vocabulary("medklip")


def test_lists_have_the_published_lengths(medklip: Vocabulary) -> None:
    assert (len(medklip.entities), len(medklip.positions)) == (75, 51)
    assert medklip.entities[:2] == ("normal", "clear")
    assert medklip.entities[-2:] == ("tail_abnorm_obs", "excluded_obs")
    assert (medklip.positions[0], medklip.positions[-1]) == ("trachea", "other")


CASES = {
    "Small left pleural effusion.": [("effusion", "left_pleural", 1)],
    "Bilateral effusions.": [("effusion", "left_pleural", 1), ("effusion", "right_pleural", 1)],
    "No effusion or pneumothorax.": [
        ("effusion", "unspecified", 0), ("pneumothorax", "unspecified", 0),
    ],
    "Possible right basilar opacity.": [("opacity", "right_lower_lung", -1)],
    "Left lower lobe atelectasis and right pleural effusion.": [
        ("atelectasis", "lower_left_lobe", 1), ("effusion", "right_pleural", 1),
    ],
    "Opacity in the left lower lobe and the right upper lobe.": [
        ("opacity", "lower_left_lobe", 1), ("opacity", "upper_right_lobe", 1),
    ],
    "No pneumothorax but a fracture of the clavicle.": [
        ("pneumothorax", "unspecified", 0), ("fracture", "clavicle", 1),
    ],
    "The heart is normal in size.": [("normal", "heart_size", 1)],
    "Hilar prominence.": [("prominence", "hilar_unspec", 1)],
    "": [],
}  # fmt: skip


@pytest.mark.parametrize("report", CASES)
def test_rules(report: str, medklip: Vocabulary) -> None:
    assert report_triplets(report, medklip) == CASES[report]


def test_sections_about_the_request_give_none(medklip: Vocabulary) -> None:
    report = (
        "INDICATION: Pneumonia.\nFINDINGS: No edema. No edema.\nRECOMMENDATION: Follow the nodule."
    )
    assert report_triplets(report, medklip) == [("edema", "unspecified", 0)]


def entity(tokens: str, label: str, at: int, *relations: tuple[str, str]) -> dict:
    return {
        "tokens": tokens, "label": label, "start_ix": at, "end_ix": at,
        "relations": [list(r) for r in relations],
    }  # fmt: skip


# "Small effusion in the left lower lobe and at the right base . No edema . Heart may be enlarged ."
GRAPH = {
    "text": "made up",
    "entities": {
        "1": entity("Small", "OBS-DP", 0, ("modify", "2")),
        "2": entity("effusion", "OBS-DP", 1, ("located_at", "5"), ("located_at", "7")),
        "3": entity("left", "ANAT-DP", 4, ("modify", "5")),
        "4": entity("lower", "ANAT-DP", 5, ("modify", "5")),
        "5": entity("lobe", "ANAT-DP", 6),
        "6": entity("right", "ANAT-DP", 10, ("modify", "7")),
        "7": entity("base", "ANAT-DP", 11),
        "8": entity("edema", "OBS-DA", 14),
        "9": entity("Heart", "ANAT-DP", 16),
        "10": entity("enlarged", "OBS-U", 19, ("located_at", "9")),
    },
}
EXPECTED = [
    ("effusion", "left lower lobe", 1),
    ("effusion", "right base", 1),
    ("edema", "", 0),
    ("enlarged", "heart", -1),
]
LONG = {
    "ANAT-DP": "Anatomy::definitely present",
    "OBS-DP": "Observation::definitely present",
    "OBS-DA": "Observation::definitely absent",
    "OBS-U": "Observation::uncertain",
}


def test_radgraph_file(tmp_path, medklip: Vocabulary) -> None:
    other = json.loads(json.dumps(GRAPH))
    for value in other["entities"].values():
        value["label"] = LONG[value["label"]]
    path = tmp_path / "graphs.json"
    graphs = {"p10/p1/s1.txt": GRAPH, "0": other, "test": {"text": "", "labeler_1": GRAPH}}
    path.write_text(json.dumps(graphs))
    found = triplets.read_radgraph(path)
    assert found == dict.fromkeys(graphs, EXPECTED)
    table = triplets.triplet_matrix(found["0"], medklip)
    assert table.shape == (51, 75)
    assert table.dtype == np.int8
    said = {
        (medklip.entities[e], medklip.positions[p]): int(table[p, e])
        for p, e in zip(*np.nonzero(table != -2), strict=True)
    }
    assert said == {
        ("effusion", "lower_left_lobe"): 1,
        ("effusion", "right_lower_lung"): 1,
        ("edema", "unspecified"): 0,
        ("enlarge", "heart_size"): -1,
    }


def test_present_wins_in_the_table_and_unknown_words_are_placed(medklip: Vocabulary) -> None:
    said = [
        Triplet("edema", "", -1), Triplet("edema", "", 1), Triplet("edema", "", 0),
        Triplet("nodules", "left big toe", 0), Triplet("nodule", "other", -1),
        Triplet("zebra", "", 1),
    ]  # fmt: skip
    table = triplets.triplet_matrix(said, medklip)
    edema, nodule = medklip.entities.index("edema"), medklip.entities.index("nodule")
    assert table[medklip.positions.index("unspecified"), edema] == 1
    assert table[medklip.positions.index("other"), nodule] == -1
    assert (table != -2).sum() == 2
    exists = triplets.entity_existence(table)
    assert (exists[edema], exists[nodule]) == (1, -1)
    assert (exists == -2).sum() == 73


def test_own_vocabulary(tmp_path) -> None:
    path = tmp_path / "v.json"
    positions = {"retina": ["retina\\w*"], "unspecified": [], "other": []}
    path.write_text(json.dumps({"entities": {"drusen": ["drusen"]}, "positions": positions}))
    mine = load_vocabulary(path)
    assert report_triplets("No retinal drusen.", mine) == [("drusen", "retina", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected"),
        ("{", "not valid JSON"),
        ('{"entities": {"a": ["("]}, "positions": {}}', "regular expressions"),
        ('{"entities": {"a": ["b"]}, "positions": {}}', "positions lack other, unspecified"),
    ],
)
def test_wrong_vocabularies_are_explained(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_vocabulary(path)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"r1": {"text": "x"}}, "report 'r1' is not a RadGraph graph"),
        ({"r1": {"entities": {"1": {"tokens": "a"}}}}, "label"),
        ({"r1": {"entities": {"1": entity("a", "OBS-XX", 0)}}}, "unknown label 'OBS-XX'"),
        ({"r1": {"entities": {"1": entity("a", "OBS-DP", 0, ("modify", "9"))}}}, "'9'"),
        ([], "expected an object of reports"),
    ],
)
def test_wrong_graphs_are_explained(tmp_path, graph, message: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(graph))
    with pytest.raises(UserError, match=message):
        triplets.read_radgraph(path)
    with pytest.raises(UserError, match="does not exist"):
        triplets.read_radgraph(tmp_path / "none.json")


def test_real_reports_give_triplets_that_agree_with_the_gold(data_dir, medklip: Vocabulary) -> None:
    lines = (data_dir / "openi_reports/reports.jsonl").read_text("utf-8").splitlines()[:400]
    reports = [json.loads(line) for line in lines]
    agree = total = 0
    for report in reports:
        text = f"{report['findings']}\n\n{report['impression']}"
        table = triplets.triplet_matrix(report_triplets(text, medklip), medklip)
        said = triplets.entity_existence(table)[medklip.entities.index("effusion")] == 1
        gold = any(term.startswith("Pleural Effusion") for term in report["mesh_major"])
        agree += said and gold
        total += said or gold
    assert total > 10
    assert agree / total > 0.7
