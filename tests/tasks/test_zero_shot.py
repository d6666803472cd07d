"""Without these, zero-shot numbers could come from the wrong rows, labels or prompts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.tasks.base import EvalData, Task, slugs
from medvlp_jax.tasks.zero_shot import ZeroShot

NAMES = ("Edema", "Pleural Effusion", "Nodule")
PROMPTS = {n: {"positive": [n, f"{n} seen"], "negative": [f"no {n}"]} for n in NAMES}


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    """Axis k for "label k", axis 3 + k for "no label k"."""
    rows = np.zeros((len(texts), 6), np.float32)
    for row, text in enumerate(texts):
        k = next(i for i, n in enumerate(NAMES) if n.lower() in text.lower())
        rows[row, 3 + k if text.lower().startswith("no ") else k] = 1
    return rows


def make_data(label: np.ndarray, embed: np.ndarray | None = None, **changes) -> EvalData:
    """By default the images answer every prompt correctly."""
    label = np.asarray(label, np.float32)
    n = len(label)
    if embed is None:
        embed = np.concatenate([label > 0, label <= 0], axis=1)
    fields = dict(
        image_embed=unit(np.asarray(embed, np.float32) + 1e-3),
        text_embed=unit(np.ones((n, 6))),
        label=label,
        label_mask=np.ones_like(label),
        text_id=np.arange(n),
        subject_id=np.arange(n),
        study_id=np.arange(n),
        example_index=np.arange(n),
        label_names=NAMES,
        dataset="fake/config",
    )
    return EvalData(**{**fields, **changes})


def labels(rows: int = 60, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, 3)) < 0.4).astype(np.float32)


TASK = ZeroShot(prompts=PROMPTS, bootstrap_samples=50)


@pytest.mark.parametrize("ensemble", ["embeddings", "probabilities"])
@pytest.mark.parametrize("scaled", [True, False])
def test_perfect_embeddings_score_one(ensemble: str, scaled: bool) -> None:
    task = dataclasses.replace(TASK, ensemble=ensemble, scaled=scaled)
    result = task(make_data(labels()), encode, 14.0)
    for metric in ("auroc", "auprc", "f1", "mcc"):
        for name in ("macro_" + metric, f"{metric}_pleural_effusion"):
            found = result.metrics[f"zero_shot/fake/{name}"]
            assert found[:3] == (1.0, 1.0, 1.0)
            assert found.n == 60
    assert result.predictions["score"].shape == (60, 3)


def test_inverted_embeddings_score_zero() -> None:
    label = labels()
    data = make_data(label, np.concatenate([label <= 0, label > 0], axis=1))
    assert TASK(data, encode, 14.0).metrics["zero_shot/fake/macro_auroc"].value == 0.0


def test_constant_embeddings_score_chance() -> None:
    data = make_data(labels(), np.ones((60, 6)))
    found = TASK(data, encode, 14.0).metrics
    assert found["zero_shot/fake/macro_auroc"][:3] == (0.5, 0.5, 0.5)
    prevalence = labels()[:, 1].mean()
    assert found["zero_shot/fake/auprc_pleural_effusion"].value == pytest.approx(prevalence)


def test_probability_is_the_pair_softmax() -> None:
    data = make_data(labels(3))
    pos, neg = data.image_embed[:, 0], data.image_embed[:, 3]
    expected = np.exp(5 * pos) / (np.exp(5 * pos) + np.exp(5 * neg))
    score = TASK(data, encode, 5.0).predictions["score"][:, 0]
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    unscaled = dataclasses.replace(TASK, scaled=False)(data, encode, 5.0).predictions["score"]
    expected = np.exp(pos) / (np.exp(pos) + np.exp(neg))
    np.testing.assert_allclose(unscaled[:, 0], expected, rtol=1e-5)


def test_ensembles_average_what_they_say() -> None:
    rng = np.random.default_rng(0)
    vectors = {t: unit(rng.normal(size=6)) for t in ("a", "b", "c")}
    data = make_data(labels(4), rng.normal(size=(4, 6)))
    prompts = {n: {"positive": ["a", "b"], "negative": ["c"]} for n in NAMES}

    def lookup(texts: list[str]) -> np.ndarray:
        return np.stack([vectors[t] for t in texts])

    sims = {t: data.image_embed @ v for t, v in vectors.items()}
    pair = [1 / (1 + np.exp(-3.0 * (sims[t] - sims["c"]))) for t in ("a", "b")]
    task = ZeroShot(prompts=prompts, ensemble="probabilities", bootstrap_samples=0)
    score = task(data, lookup, 3.0).predictions["score"]
    np.testing.assert_allclose(score[:, 2], np.mean(pair, axis=0), rtol=1e-5)
    mean = unit(vectors["a"] + vectors["b"])
    expected = 1 / (1 + np.exp(-3.0 * (data.image_embed @ mean - sims["c"])))
    task = ZeroShot(prompts=prompts, bootstrap_samples=0)
    np.testing.assert_allclose(
        task(data, lookup, 3.0).predictions["score"][:, 0], expected, rtol=1e-5
    )


def test_order_of_prompts_and_rows_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    data = make_data(labels(), rng.normal(size=(60, 6)))
    turned = {n: {s: list(reversed(t)) for s, t in PROMPTS[n].items()} for n in reversed(NAMES)}
    first = TASK(data, encode, 9.0).metrics
    again = dataclasses.replace(TASK, prompts=turned)(data, encode, 9.0).metrics
    order = rng.permutation(60)
    mixed = {
        f.name: getattr(data, f.name)[order]
        for f in dataclasses.fields(data)
        if isinstance(getattr(data, f.name), np.ndarray)
    }
    shuffled = TASK(dataclasses.replace(data, **mixed), encode, 9.0).metrics
    for key, metric in first.items():
        assert again[key].value == pytest.approx(metric.value)
        assert shuffled[key].value == pytest.approx(metric.value)


def test_single_class_labels_are_nan_named_and_not_in_the_macro() -> None:
    label = labels()
    label[:, 2] = 0
    result = TASK(make_data(label), encode, 14.0)
    assert result.artefacts["excluded_labels"] == {"Nodule": "no positive among 60 known rows"}
    assert np.isnan(result.metrics["zero_shot/fake/auroc_nodule"].value)
    assert result.metrics["zero_shot/fake/macro_auroc"].value == 1.0
    nobody = TASK(make_data(np.zeros((5, 3))), encode, 14.0)
    assert np.isnan(nobody.metrics["zero_shot/fake/macro_auroc"].value)
    assert len(nobody.artefacts["excluded_labels"]) == 3


def test_uncertain_and_unknown_labels() -> None:
    label = labels()
    label[:10, 0] = -1
    mask = np.ones_like(label)
    mask[10:25, 0] = 0
    embed = np.concatenate([label > 0, label <= 0], axis=1)
    data = make_data(label, embed, label_mask=mask)
    key = "zero_shot/fake/auroc_edema"
    results = {
        policy: dataclasses.replace(TASK, uncertain_policy=policy)(data, encode, 14.0)
        for policy in ("ignore", "zeros", "ones")
    }
    assert [results[p].metrics[key].n for p in results] == [35, 45, 45]
    assert results["ignore"].metrics[key].value == 1.0
    assert results["zeros"].metrics[key].value == 1.0
    assert results["ones"].metrics[key].value < 1.0
    assert results["ones"].predictions["label"][:10, 0].tolist() == [1.0] * 10


def test_all_rows_of_one_patient_give_values_without_intervals() -> None:
    data = make_data(labels(), subject_id=np.zeros(60))
    metric = TASK(data, encode, 14.0).metrics["zero_shot/fake/macro_auroc"]
    assert metric.value == 1.0
    assert np.isnan(metric.low)


def test_thresholds_from_validation_rows() -> None:
    label = labels()
    embed = np.concatenate([label + 3, np.ones_like(label)], axis=1)  # all look positive at 0.5
    data = make_data(label, embed)
    before = TASK(data, encode, 14.0).metrics["zero_shot/fake/macro_mcc"].value
    chosen = TASK.choose_thresholds(data, encode, 14.0, by="mcc")
    after = dataclasses.replace(TASK, threshold=chosen)(data, encode, 14.0)
    assert before < 0.2
    assert after.metrics["zero_shot/fake/macro_mcc"].value > 0.9
    assert after.artefacts["thresholds"] == chosen
    with pytest.raises(UserError, match="Nodule"):
        dataclasses.replace(TASK, threshold={"Edema": 0.5, "Pleural Effusion": 0.5})(
            data, encode, 14.0
        )


def test_multi_class() -> None:
    truth = np.arange(30) % 3
    label = np.eye(3)[truth]
    label[0] = 1  # three labels: left out
    task = dataclasses.replace(TASK, mode="multi_class")
    result = task(make_data(label), encode, 14.0)
    assert result.metrics["zero_shot/fake/accuracy"][:3] == (1.0, 1.0, 1.0)
    assert result.metrics["zero_shot/fake/macro_f1"].value == 1.0
    assert result.metrics["zero_shot/fake/accuracy_chance"].value == pytest.approx(1 / 3)
    assert result.metrics["zero_shot/fake/accuracy"].n == 29
    assert result.artefacts["left_out_rows"] == 1
    constant = task(make_data(label, np.ones((30, 6))), encode, 14.0)
    assert constant.metrics["zero_shot/fake/accuracy"].value == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="exactly one positive"):
        task(make_data(np.ones((5, 3))), encode, 14.0)


def test_standardising_classes_undoes_a_bias_towards_one() -> None:
    truth = np.arange(30) % 3
    embed = np.concatenate([np.eye(3)[truth] + [5, 0, 0], np.zeros((30, 3))], axis=1)
    task = dataclasses.replace(TASK, mode="multi_class", ensemble="max")
    data = make_data(np.eye(3)[truth], embed)
    assert task(data, encode, 1.0).metrics["zero_shot/fake/accuracy"].value == pytest.approx(1 / 3)
    task = dataclasses.replace(task, standardise=True)
    assert task(data, encode, 1.0).metrics["zero_shot/fake/accuracy"].value == 1.0


def test_prompt_files(tmp_path) -> None:
    data = make_data(labels())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({k: v for k, v in PROMPTS.items() if k != "Nodule"}))
    with pytest.raises(UserError, match=r"mine\.json.*'Nodule'"):
        ZeroShot(prompts=str(path))(data, encode, 14.0)
    chosen = ZeroShot(prompts=str(path), labels=NAMES[:2], bootstrap_samples=0)(data, encode, 14.0)
    assert chosen.metrics["zero_shot/fake/macro_auroc"].value == 1.0
    assert "zero_shot/fake/auroc_nodule" not in chosen.metrics
    path.write_text("{")
    with pytest.raises(UserError, match=r"mine\.json is not valid JSON"):
        ZeroShot(prompts=str(path))(data, encode, 14.0)
    with pytest.raises(UserError, match=r"nothing\.json does not exist"):
        ZeroShot(prompts="nothing")(data, encode, 14.0)
    with pytest.raises(UserError, match="no label of"):
        ZeroShot(labels=("Fracture",))(data, encode, 14.0)


def test_without_a_prompt_file_the_template_pair_is_used_and_reported() -> None:
    result = ZeroShot(bootstrap_samples=0)(make_data(labels()), encode, 14.0)
    assert result.artefacts["prompts"]["Edema"] == {"positive": ["edema"], "negative": ["no edema"]}
    assert result.metrics["zero_shot/fake/macro_auroc"].value == 1.0


def test_without_labels_it_says_why_it_did_not_run() -> None:
    none = np.zeros((4, 0), np.float32)
    data = make_data(none, labels(4) + 1, label_names=())
    assert "no labels" in TASK(data, encode, 14.0).artefacts["skipped"]


@pytest.mark.parametrize(
    "options", [dict(mode="x"), dict(ensemble="max"), dict(uncertain_policy="x")]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        ZeroShot(**options)


def test_base_checks_shapes_and_makes_keys() -> None:
    with pytest.raises(ValueError, match="text_id has 3 rows"):
        make_data(labels(4), text_id=np.arange(3))
    with pytest.raises(ValueError, match="label"):
        make_data(labels(4), label_names=NAMES[:2])
    with pytest.raises(TypeError):
        Task()(make_data(labels(4)), encode, 1.0)
    assert slugs(["Enlarged Cardiom. / Heart", "胸腔积液"]) == [
        "enlarged_cardiom_heart",
        "胸腔积液",
    ]
    assert slugs(["A+", "A-", "+"]) == ["a_0", "a_1", "2"]
