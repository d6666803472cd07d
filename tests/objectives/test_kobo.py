"""Without these, KoBo's knowledge could come from unknown labels, or its terms be mixed up."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.kobo import Kobo

ROWS, LABELS, WIDTH = 6, 4, 8
KEYS = {"params": jax.random.key(0)}


def clean(**changes: Any) -> tuple[Pass, ...]:
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    batch = {
        "text_label": rng.integers(-1, 2, (ROWS, LABELS)).astype(np.float32),
        "text_label_mask": np.ones((ROWS, LABELS), np.float32),
        "example_mask": np.ones(ROWS, np.float32),
        **changes,
    }
    return (Pass(batch, {"image_embed": embeds[0], "text_embed": embeds[1]}),)


@pytest.fixture
def objective(tmp_path) -> Kobo:
    table = np.random.default_rng(1).normal(size=(LABELS, 5)).astype(np.float32)
    np.save(tmp_path / "entities.npy", table)
    return Kobo(
        str(tmp_path / "entities.npy"),
        contrast_weight=2.0,
        enhancement_weight=3.0,
        guidance_weight=0.5,
    )


def test_terms_and_weights(objective) -> None:
    step = clean()
    variables = objective.init(KEYS, step, train=False)
    assert variables["constants"]["entity_embeddings"].shape == (LABELS, 5)
    loss, metrics = objective.apply(variables, step, train=False)
    total = 2 * metrics["contrast"] + 3 * metrics["enhancement"] + 0.5 * metrics["guidance"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    outputs = step[0].outputs
    wanted = info_nce(outputs["image_embed"], outputs["text_embed"], 1 / 0.07)
    np.testing.assert_allclose(metrics["contrast"], wanted, rtol=1e-5)
    assert 0 < float(metrics["noise"]) < 1
    assert metrics["enhancement"] < metrics["contrast"]  # negatives weigh less


def test_unknown_labels_are_no_knowledge(objective) -> None:
    nothing = clean(text_label_mask=np.zeros((ROWS, LABELS), np.float32))
    variables = objective.init(KEYS, nothing, train=False)
    _, metrics = objective.apply(variables, nothing, train=False)
    assert float(metrics["noise"]) == float(metrics["guidance"]) == 0
    np.testing.assert_allclose(metrics["enhancement"], metrics["contrast"], rtol=1e-5)


def test_padded_rows_do_not_count(objective) -> None:
    mask = np.r_[np.ones(4), np.zeros(2)].astype(np.float32)
    padded = clean(example_mask=mask)
    variables = objective.init(KEYS, padded, train=False)
    loss, _ = objective.apply(variables, padded, train=False)
    cut = tuple(Pass(*({k: v[:4] for k, v in part.items()} for part in p)) for p in padded)
    np.testing.assert_allclose(loss, objective.apply(variables, cut, train=False)[0], rtol=1e-5)


def test_needs_entities_and_labels(objective) -> None:
    with pytest.raises(UserError, match=r"kobo\.entities"):
        Kobo().init(KEYS, clean(), train=False)
    empty = np.zeros((ROWS, 0), np.float32)
    with pytest.raises(UserError, match="labelled"):
        objective.init(KEYS, clean(text_label=empty, text_label_mask=empty), train=False)
