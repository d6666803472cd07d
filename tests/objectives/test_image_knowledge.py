"""Without these, KAD's parts could read each other's context, or miss the labels."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.image_knowledge import image_entity_contrast
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.image_knowledge import ImageKnowledge

ROWS, LABELS, TOKENS, WIDTH = 6, 5, 4, 32
KEYS = {"params": jax.random.key(0)}


def clean(width: int = WIDTH, **changes: Any) -> tuple[Pass, ...]:
    rng = np.random.default_rng(0)
    batch = {
        "label": rng.integers(-1, 2, (ROWS, LABELS)).astype(np.float32),
        "label_mask": np.ones((ROWS, LABELS), np.float32),
        "example_mask": np.ones(ROWS, np.float32),
    }
    outputs = {
        "image_token_embed": rng.normal(size=(ROWS, TOKENS, width)).astype(np.float32),
        "text_pooled": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
    }
    for key, value in changes.items():
        (outputs if key in outputs else batch)[key] = value
    return (Pass(batch, outputs),)


def evaluate(objective: ImageKnowledge, step: tuple[Pass, ...], variables: Any = None):
    if variables is None:
        variables = objective.init(KEYS, step, train=False)
    loss, metrics = objective.apply(variables, step, train=False)
    return loss, metrics, variables


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_parts_and_their_weights(variant) -> None:
    made = ImageKnowledge(decoder="test", existence_weight=2.0, text_weight=0.5, variant=variant)
    step = clean()
    loss, metrics, variables = evaluate(made, step)
    outputs = step[0].outputs
    wanted = image_entity_contrast(
        outputs["image_token_embed"].mean(axis=1), outputs["text_pooled"], variant=variant
    )
    np.testing.assert_allclose(metrics["contrast"], wanted, rtol=1e-5)
    total = wanted + 2 * metrics["image_existence"] + metrics["text_existence"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    for name in ("image", "text"):
        assert abs(float(metrics[f"{name}_existence"]) - math.log(2)) < 0.1
    assert ("log_logit_scale" in variables["params"]) == (variant == "paper")


def test_each_context_is_its_own() -> None:
    made, step = ImageKnowledge(decoder="test"), clean()
    _, first, variables = evaluate(made, step)
    other = np.random.default_rng(5).normal(size=(ROWS, WIDTH)).astype(np.float32)
    _, second, _ = evaluate(made, clean(text_pooled=other), variables)
    assert float(first["image_existence"]) == float(second["image_existence"])
    assert float(first["text_existence"]) != float(second["text_existence"])
    _, alone, _ = evaluate(ImageKnowledge(decoder="test", text_weight=0.0), step, variables)
    assert "text_existence" not in alone


def test_padded_rows_do_not_count() -> None:
    made = ImageKnowledge(decoder="test")
    mask = np.r_[np.ones(4), np.zeros(2)].astype(np.float32)
    padded = clean(example_mask=mask)
    loss, _, variables = evaluate(made, padded)
    cut = tuple(Pass(*({k: v[:4] for k, v in part.items()} for part in p)) for p in padded)
    np.testing.assert_allclose(loss, evaluate(made, cut, variables)[0], rtol=1e-5)


def test_queries_from_a_file(tmp_path) -> None:
    np.save(tmp_path / "queries.npy", np.ones((LABELS, WIDTH), np.float32))
    made = ImageKnowledge(decoder="test", queries=str(tmp_path / "queries.npy"))
    _, _, variables = evaluate(made, clean())
    assert "queries" not in variables["params"]["decoder"]
    assert variables["constants"]["query_embeddings"].shape == (LABELS, WIDTH)


def test_refuses_what_does_not_fit() -> None:
    empty = np.zeros((ROWS, 0), np.float32)
    with pytest.raises(UserError, match="has none"):
        evaluate(ImageKnowledge(decoder="test"), clean(label=empty, label_mask=empty))
    with pytest.raises(UserError, match="16 wide"):
        evaluate(ImageKnowledge(decoder="test"), clean(width=16))
    with pytest.raises(UserError, match="image_knowledge variant"):
        evaluate(ImageKnowledge(decoder="test", variant="code"), clean())
    (step,) = clean()
    del step.outputs["image_token_embed"]
    with pytest.raises(UserError, match="image_token_projection"):
        evaluate(ImageKnowledge(decoder="test"), (step,))
