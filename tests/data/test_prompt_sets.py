"""Without these, zero-shot classification would read a label's prompts wrong, or other ones in every run."""

from __future__ import annotations

import json

import pytest

from medvlp_jax.data.labeler import LABELS, find_mentions, load_rules
from medvlp_jax.data.prompt_sets import load_prompts
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError

STYLES = ("chexzero", "gloria", "biovil", "descriptions")
DATASETS = ("chexpert", "chexpert_5x200", "rsna_pneumonia", "siim_pneumothorax", "nih_cxr14")
COVID = ("COVID-19", "Pneumonia", "No Finding", "Normal")


@pytest.mark.parametrize("style", STYLES)
def test_styles_have_prompts_for_the_labels_of_the_usual_datasets(style: str) -> None:
    labels = {*COVID, *(name for d in DATASETS for name in load_spec(d).label_names)}
    assert set(LABELS) <= labels
    found = load_prompts(style, sorted(labels))
    assert set(found) == labels
    for label, sides in found.items():
        for side in ("positive", "negative"):
            texts = sides[side]
            assert texts, (label, side)
            assert len(set(texts)) == len(texts)
            assert all(text == " ".join(text.split()) and text for text in texts)
            assert not any("{" in text for text in texts)
        assert not set(sides["positive"]) & set(sides["negative"])


@pytest.mark.parametrize("style", ["gloria", "biovil"])
def test_what_prompts_say_is_what_the_labeler_reads(style: str) -> None:
    """A positive prompt that the rules read as "absent" would be a slip of the pen."""
    rules = load_rules()
    names = [name for name in LABELS if name != "No Finding"]
    found = load_prompts(style, names, number=0)
    for name in names:
        for side, wrong in (("positive", 0), ("negative", 1)):
            for text in found[name][side]:
                values = {m.value for m in find_mentions(text, rules) if m.finding == name}
                assert wrong not in values, (name, side, text)


def test_templates_fill_in_the_name() -> None:
    found = load_prompts("chexzero", ["Pleural_Thickening", "Zebra"])
    assert found["Pleural_Thickening"] == {
        "positive": ["pleural thickening"],
        "negative": ["no pleural thickening"],
    }
    assert found["Zebra"]["negative"] == ["no zebra"]


def test_combinations_are_drawn_by_seed_and_label(tmp_path) -> None:
    entry = {"severity": ["", "mild"], "subtype": ["edema", "fluid"], "location": ["", "left"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"Edema": entry, "Other": entry}))
    plain = ["edema", "edema left", "fluid", "fluid left"]
    every = load_prompts(path, ["Edema"], number=0)["Edema"]["positive"]
    assert every == [*plain, *(f"mild {text}" for text in plain)]
    first = load_prompts(path, ["Edema", "Other"], number=3, seed=1)
    assert first == load_prompts(path, ["Other", "Edema"], number=3, seed=1)
    drawn = first["Edema"]["positive"]
    assert len(drawn) == 3
    assert set(drawn) <= set(every)
    assert drawn != first["Other"]["positive"]
    draws = [
        load_prompts(path, ["Edema"], number=3, seed=s)["Edema"]["positive"] for s in range(20)
    ]
    assert {text for draw in draws for text in draw} == set(every)
    assert len(load_prompts("gloria", ["Edema"])["Edema"]["positive"]) == 5


def test_own_files(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "Drusen": {"positive": ["drusen"], "negative": ["no drusen"]},
                "Soft drusen": "drusen",
                "Bleeding": {"severity": ["", "large"], "subtype": ["hemorrhage"]},
            }
        )
    )
    found = load_prompts(path, ["Drusen", "soft_drusen", "bleeding", "Myopia"])
    assert found == {
        "Drusen": {"positive": ["drusen"], "negative": ["no drusen"]},
        "soft_drusen": {"positive": ["drusen"], "negative": ["no drusen"]},
        "bleeding": {"positive": ["hemorrhage", "large hemorrhage"]},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object of labels"),
        ("{", "not valid JSON"),
        ('{"A": {"positives": ["a"]}}', "label 'A' has 'positives'"),
        ('{"A": {"positive": "a"}}', "label 'A' has 'positive'; expected lists"),
        ('{"A": "B"}', "same as a label that has no prompts"),
    ],
)
def test_wrong_files_are_explained(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_prompts(path, ["A"])


def test_unknown_style_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"does not exist; give the path .*biovil"):
        load_prompts("nothing", ["A"])
