"""Without these, severity could come from unknown labels, or its heads learn from the wrong side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.ranking import ranking, severity_margins
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.ranking import Ranking

ROWS, WIDTH = 5, 8
KEYS = {"params": jax.random.key(0)}
LABEL = np.array(
    [[0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, -1, 0, 1], [1, 0, 0, 0]], np.float32
)
MASK = np.array([[1, 1, 1, 1]] * 4 + [[1, 1, 0, 1]], np.float32)
SEVERITY, KNOWN = [0, 2, 3, 1, 1], [1, 1, 1, 0, 0]  # the last two: uncertain, and unknown


def clean(**changes: Any) -> tuple[Pass, ...]:
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    batch = {
        "label": LABEL,
        "label_mask": MASK,
        "text_label": LABEL,
        "text_label_mask": MASK,
        "study_id": np.array([1, 2, 3, 4, 5], np.int32),
        "example_mask": np.ones(ROWS, np.float32),
        **changes,
    }
    outputs = {
        "image_embed": embeds[0],
        "text_embed": embeds[1],
        "image_pooled": rng.normal(size=(ROWS, 6)).astype(np.float32),
        "text_pooled": rng.normal(size=(ROWS, 7)).astype(np.float32),
    }
    return (Pass(batch, outputs),)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_ranking_and_both_cross_entropies_are_added(variant: str) -> None:
    objective, passes = Ranking((0, 1, 2), variant=variant), clean()
    params = objective.init(KEYS, passes, train=True)
    loss, metrics = objective.apply(params, passes, train=True)
    outputs = passes[0].outputs
    parts = list(
        ranking(
            outputs["image_embed"] @ outputs["text_embed"].T,
            severity_margins(np.array(SEVERITY), np.array(KNOWN), np.arange(ROWS)),
            variant=variant,
        )
    )
    for side in ("image", "text"):
        head = params["params"][f"{side}_severity"]
        logits = outputs[f"{side}_pooled"] @ head["kernel"] + head["bias"]
        log_probs = jax.nn.log_softmax(logits)
        parts.append(-np.mean([log_probs[i, SEVERITY[i]] for i in range(ROWS) if KNOWN[i]]))
        np.testing.assert_allclose(metrics[f"{side}_severity"], parts[-1], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(parts), rtol=1e-5)
    np.testing.assert_allclose(metrics["known"], 3 / 5, rtol=1e-6)


def test_padded_rows_have_no_severity() -> None:
    objective = Ranking((0, 1, 2))
    mask = np.array([1, 1, 1, 1, 0], np.float32)
    passes, changed = clean(example_mask=mask), clean(example_mask=mask)
    changed[0].outputs["image_pooled"][4] = 9.0
    changed[0].batch["label_mask"] = np.ones_like(MASK)
    params = objective.init(KEYS, passes, train=True)
    one, other = (objective.apply(params, p, train=True)[0] for p in (passes, changed))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_without_any_known_severity_the_margin_is_the_smallest() -> None:
    objective, passes = Ranking((0,)), clean(label_mask=np.zeros_like(MASK))
    params = objective.init(KEYS, passes, train=True)
    loss, metrics = objective.apply(params, passes, train=True)
    assert float(metrics["image_severity"]) == 0
    assert float(metrics["text_severity"]) > 0
    outputs = passes[0].outputs
    scores = jnp.asarray(outputs["image_embed"] @ outputs["text_embed"].T)
    texts, images = ranking(scores, 0.5 * (1 - np.eye(ROWS)))
    np.testing.assert_allclose(loss - metrics["text_severity"], texts + images, rtol=1e-5)


@pytest.mark.parametrize("columns", [(), (4,), (0, -1)])
def test_columns_must_exist(columns) -> None:
    with pytest.raises(UserError, match=r"ranking\.columns"):
        Ranking(columns).init(KEYS, clean(), train=True)
