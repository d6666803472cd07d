"""Without these, a contrastive objective could read padding, the wrong view or unknown labels."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax import build
from medvlp_jax.errors import UserError
from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.convirt import Convirt
from medvlp_jax.objectives.corruption import (
    Clean,
    MaskImage,
    Momentum,
    NthText,
    SecondImage,
    SecondText,
)
from medvlp_jax.objectives.cxr_clip import CxrClip
from medvlp_jax.objectives.knowledge_contrast import KnowledgeContrast
from medvlp_jax.objectives.maco import Maco
from medvlp_jax.objectives.mil_nce import MilNce
from medvlp_jax.objectives.momentum_contrast import MomentumContrast
from medvlp_jax.objectives.simclr import Simclr
from medvlp_jax.objectives.similarity_distillation import SimilarityDistillation
from medvlp_jax.objectives.target_contrast import TargetContrast
from medvlp_jax.objectives.triaged_contrast import TriagedContrast

ROWS, WIDTH, LABELS, LENGTH, PATCHES = 6, 8, 4, 5, 9
REAL = ROWS - 2


def contrast_pass(seed: int = 0, **changes: Any) -> Pass:
    """What a pass holds; two seeds are two views of the same batch, whose outputs differ."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    embeds = normal(2, ROWS, WIDTH)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    batch = {
        "text_id": np.array([0, 1, 1, 2, 3, 0], np.int32),
        "study_id": np.array([5, 5, 6, 7, 8, 5], np.int32),
        "subject_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
        "attention_mask": (np.arange(LENGTH) < np.array([5, 2, 3, 4, 1, 5])[:, None]).astype(int),
        "image_mask": (shared.random((ROWS, PATCHES)) < 0.5).astype(np.float32),
    }
    for side in ("label", "text_label"):
        batch[side] = shared.integers(-1, 2, (ROWS, LABELS)).astype(np.float32)
        batch[f"{side}_mask"] = np.ones((ROWS, LABELS), np.float32)
    outputs = {
        "image_embed": embeds[0],
        "text_embed": embeds[1],
        "image_pooled": normal(ROWS, 10),
        "text_pooled": normal(ROWS, 12),
        "text_states": normal(ROWS, LENGTH, 12),
    }
    for key, value in changes.items():
        (outputs if key in outputs else batch)[key] = value
    return Pass(batch, outputs)


def passes_of(objective: Objective, **changes: Any) -> tuple[Pass, ...]:
    return tuple(contrast_pass(i, **changes) for i in range(len(objective.corruptions())))


def evaluate(objective: Objective, passes: tuple[Pass, ...], variables: Any = None):
    """Loss, metrics and variables (fresh ones unless given)."""
    if variables is None:
        variables = objective.init(jax.random.key(0), passes, train=False)
    loss, metrics = objective.apply(variables, passes, train=False)
    return loss, metrics, variables


def rows_of(passes: tuple[Pass, ...], rows: slice) -> tuple[Pass, ...]:
    return tuple(Pass(*({k: v[rows] for k, v in part.items()} for part in p)) for p in passes)


OBJECTIVES = [
    Convirt(),
    Convirt(variant="released"),
    TargetContrast(),
    TargetContrast(targets="group"),
    TargetContrast(targets="group", group="study_id", ceiling=0.4, learnable=False),
    TargetContrast(targets="group", group="label"),
    TargetContrast(targets="prior"),
    TriagedContrast(positive=0.3, negative=0.1),
    TriagedContrast(positive=0.3, negative=0.1, variant="released", pooling="mean"),
    MilNce(),
    MilNce(variant="released"),
    MilNce(texts=3),
    KnowledgeContrast(),
    KnowledgeContrast(variant="released"),
    CxrClip(),
    Simclr(features=0),
    Maco(),
    MomentumContrast(queue_size=8),
    MomentumContrast(queue_size=7, queue_start="empty", unimodal_weight=0.5),
    SimilarityDistillation(),
    SimilarityDistillation(pairs="text_text", teacher_temperature=0.04),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_padded_rows_do_not_count(objective):
    mask = np.r_[np.ones(REAL), np.zeros(ROWS - REAL)].astype(np.float32)
    padded = passes_of(objective, example_mask=mask)
    loss, _, variables = evaluate(objective, padded)
    cut, _, _ = evaluate(objective, rows_of(padded, slice(REAL)), variables)
    np.testing.assert_allclose(loss, cut, rtol=1e-5)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()

    def loss_of(first: Any) -> jax.Array:
        outputs = {**padded[0].outputs, **first}
        passes = (Pass(padded[0].batch, outputs), *padded[1:])
        return objective.apply(variables, passes, train=False)[0]

    names = ("image_embed", "text_embed")
    grads = jax.grad(loss_of)({name: padded[0].outputs[name] for name in names})
    largest = 0.0
    for grad in grads.values():
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[REAL:], 0)
        largest = max(largest, float(np.abs(grad).max()))
    assert largest > 1e-4


def test_which_passes_are_asked_for():
    tool = Momentum(1.0, sides=("text",))
    assert TargetContrast().corruptions() == (Clean(),)
    assert TargetContrast(targets="prior").corruptions() == (Clean(), tool)
    assert TriagedContrast().corruptions() == (Clean(), tool)
    assert CxrClip().corruptions() == (Clean(), SecondImage(), SecondText())
    assert Simclr().corruptions() == (Clean(), SecondImage())
    assert MilNce().corruptions() == KnowledgeContrast().corruptions() == (Clean(), SecondText())
    assert Maco(patch_size=8).corruptions() == (MaskImage(0.5, 8),)
    assert MomentumContrast(decay=0.9).corruptions() == (Clean(), Momentum(0.9))


def test_a_config_finds_every_objective_by_its_file() -> None:
    for made in OBJECTIVES:
        cls = type(made)
        name = cls.__module__.rpartition(".")[2]
        _, found = build.load_class(
            "objectives", name, "objectives", attribute=build.camel_case(name)
        )
        assert found is cls


def test_choices_are_checked():
    wrong = [
        (Convirt(variant="code"), "convirt variant"),
        (TargetContrast(targets="texts"), "target_contrast targets"),
        (TargetContrast(normalise="l1"), "target_contrast normalise"),
        (TargetContrast(targets="group", group="finding"), "needs finding"),
        (TargetContrast(targets="prior", pooling="cls"), "target_contrast pooling"),
        (TriagedContrast(variant="code"), "triaged_contrast variant"),
        (MilNce(variant="code"), "mil_nce variant"),
        (KnowledgeContrast(group="cui"), "needs cui"),
        (CxrClip(duplicates="drop"), "cxr_clip duplicates"),
        (MomentumContrast(queue_start="full"), "queue_start"),
        (SimilarityDistillation(pairs="all"), "similarity_distillation pairs"),
    ]
    for objective, message in wrong:
        with pytest.raises(UserError, match=message):
            evaluate(objective, passes_of(objective))


def test_convirt_is_info_nce_at_its_constants():
    (step,) = passes_of(Convirt())
    loss, _, variables = evaluate(Convirt(), (step,))
    assert variables == {}
    images, texts = step.outputs["image_embed"], step.outputs["text_embed"]
    wanted = info_nce(images, texts, 10.0, image_to_text_weight=0.75)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_labels_and_groups_are_targets():
    labels = TargetContrast()
    same = np.tile(np.array([1, 0, 1, 0], np.float32), (ROWS, 1))
    alike = passes_of(labels, label=same, text_label=same)
    grouped = TargetContrast(targets="group", group="study_id")
    one = passes_of(grouped, study_id=np.zeros(ROWS, np.int32))
    loss, _, variables = evaluate(labels, alike)
    np.testing.assert_allclose(loss, evaluate(grouped, one, variables)[0], rtol=1e-5)
    # Nothing known: every pair is its own positive, as in InfoNCE.
    unknown = passes_of(labels, label_mask=np.zeros((ROWS, LABELS), np.float32))
    outputs = unknown[0].outputs
    wanted = info_nce(outputs["image_embed"], outputs["text_embed"], 1 / 0.07)
    np.testing.assert_allclose(evaluate(labels, unknown, variables)[0], wanted, rtol=1e-5)


def test_triage_reads_the_frozen_reports():
    objective = TriagedContrast()
    passes = passes_of(objective)
    states = np.zeros((ROWS, LENGTH, 12), np.float32)
    states[:, 0, 0] = 1  # all reports alike: no negatives
    alike = (passes[0], Pass(passes[1].batch, {**passes[1].outputs, "text_states": states}))
    loss, metrics, _ = evaluate(objective, alike)
    assert float(loss) == 0
    assert (float(metrics["positives"]), float(metrics["negatives"])) == (ROWS, 0)
    states[np.arange(ROWS), 0] = np.eye(ROWS, 12)
    loss, metrics, _ = evaluate(objective, alike)
    assert (float(metrics["positives"]), float(metrics["negatives"])) == (1, ROWS - 1)
    outputs = passes[0].outputs
    wanted = info_nce(outputs["image_embed"], outputs["text_embed"], 10.0)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_mil_nce_leaves_out_texts_that_are_not_there() -> None:
    objective = MilNce(texts=3)
    assert objective.corruptions() == (NthText(0), NthText(1), NthText(2))
    only_first = np.tile(np.array([1, 0, 0], np.float32), (ROWS, 1))
    passes = passes_of(objective, text_present=only_first)
    loss, _, variables = evaluate(objective, passes)
    wanted, _, _ = evaluate(MilNce(texts=1), passes[:1], variables)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    every = passes_of(objective, text_present=np.ones((ROWS, 3), np.float32))
    assert abs(float(evaluate(objective, every, variables)[0]) - float(loss)) > 1e-3


def test_cxr_clip_parts_come_from_their_views():
    objective = CxrClip(image_weight=2.0, text_weight=3.0)
    passes = passes_of(objective)
    loss, metrics, _ = evaluate(objective, passes)
    image = passes[0].outputs["image_embed"], passes[1].outputs["image_embed"]
    text = passes[0].outputs["text_embed"], passes[2].outputs["text_embed"]
    scale = 1 / 0.07
    parts = {"image_image": info_nce(*image, scale), "text_text": info_nce(*text, scale)}
    parts["image_text"] = sum(info_nce(i, t, scale) for i in image for t in text) / 4
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[name], part, rtol=1e-5, err_msg=name)
    wanted = parts["image_text"] + 2 * parts["image_image"] + 3 * parts["text_text"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_second_views_take_the_place_of_the_first():
    batch = {
        "image": np.zeros((2, 4, 4, 1)),
        "image_2": np.ones((2, 4, 4, 1)),
        "input_ids": np.array([[1, 2], [3, 4]]),
        "input_ids_2": np.array([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": np.ones((2, 2)),
        "attention_mask_2": np.array([[1, 1, 1], [1, 1, 0]]),
        "text_id": np.array([1, 2]),
        "subject_id": np.array([3, 4]),
    }
    key = jax.random.key(0)
    image, text = SecondImage()(batch, key), SecondText()(batch, key)
    np.testing.assert_array_equal(image["image"], batch["image_2"])
    np.testing.assert_array_equal(image["input_ids"], batch["input_ids"])
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(text[name], batch[f"{name}_2"])
    assert "text_id" not in text  # it is the first text's
    np.testing.assert_array_equal(text["subject_id"], batch["subject_id"])
    with pytest.raises(UserError, match=r"data\.image\.views=2"):
        SecondImage()({"image": 0}, key)
    with pytest.raises(UserError, match=r"data\.text\.second"):
        SecondText()({"input_ids": 0}, key)


def test_simclr_projects_both_views_with_common_statistics():
    objective = Simclr(features=4, hidden=6)
    passes = passes_of(objective)
    variables = objective.init(jax.random.key(0), passes, train=False)
    run = jax.jit(lambda p: objective.apply(variables, p, train=True, mutable=["batch_stats"]))
    (loss, _), updated = run(passes)
    (again, _), _ = run(passes[::-1])
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    assert 0 < float(loss) < 2 * math.log(2 * ROWS) / 0.1
    stats = updated["batch_stats"]["projection"]["norm1"]["mean"]
    assert np.abs(stats).max() > 0


def test_maco_starts_with_equal_weights_and_learns_them():
    objective = Maco()
    passes = passes_of(objective)
    _, metrics, variables = evaluate(objective, passes)
    np.testing.assert_allclose(metrics["logit_scale"], 1 / 0.03, rtol=1e-6)
    np.testing.assert_allclose(metrics["importance"], math.log(2), rtol=1e-6)
    grad = jax.grad(lambda v: objective.apply(v, passes, train=True)[0])(variables)["params"]
    assert np.abs(grad["importance"]["kernel"]).max() > 1e-4


def test_distillation_from_an_equal_teacher_is_zero():
    (one,) = passes_of(Convirt())
    loss, _, _ = evaluate(SimilarityDistillation(), (one, one))
    np.testing.assert_allclose(loss, 0, atol=1e-5)
