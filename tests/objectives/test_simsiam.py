"""Without these, SimSiam could compare a view with itself, or fail beside rows of several texts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.simsiam import simsiam
from medvlp_jax.models.heads import BatchNormProjection
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.corruption import Clean, NthText, SecondImage
from medvlp_jax.objectives.simsiam import SecondImageOfNthText, Simsiam

ROWS = 6
KEYS = {"params": jax.random.key(0)}


def passes(mask: np.ndarray) -> tuple[Pass, ...]:
    rng = np.random.default_rng(0)
    views = rng.normal(size=(2, ROWS, 10)).astype(np.float32)
    return tuple(Pass({"example_mask": mask}, {"image_pooled": view}) for view in views)


def test_loss_is_that_of_projected_and_predicted_views() -> None:
    objective, two = Simsiam(8, 12, 4), passes(np.array([1, 1, 1, 1, 0, 0], np.float32))
    state = objective.init(KEYS, two, train=False)
    loss, metrics = objective.apply(state, two, train=False)
    params = state["params"]["predictor"]
    projected = [objective.apply(state, p.outputs["image_pooled"], method=_project) for p in two]
    hidden = [np.maximum(x @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0) for x in projected]
    predicted = [h @ params["fc2"]["kernel"] + params["fc2"]["bias"] for h in hidden]
    wanted = simsiam(*(x[:4] for x in (*projected, *predicted)))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert objective.corruptions() == (Clean(), SecondImage())
    assert float(metrics["spread"]) > 0.1


def _project(objective: Simsiam, pooled: np.ndarray) -> jax.Array:
    head = BatchNormProjection(objective.features, objective.hidden)
    state = {k: v["projection"] for k, v in objective.variables.items() if "projection" in v}
    return head.apply(state, pooled, train=False)


def test_second_view_goes_with_one_text_of_several() -> None:
    objective = Simsiam(several_texts=True)
    assert objective.corruptions() == (NthText(0), SecondImageOfNthText(0))
    batch = {
        "image": np.zeros((2, 4, 4, 1)),
        "image_2": np.ones((2, 4, 4, 1)),
        "input_ids": np.arange(12).reshape(2, 3, 2),
        "attention_mask": np.ones((2, 3, 2)),
    }
    changed = SecondImageOfNthText(1)(batch, jax.random.key(0))
    np.testing.assert_array_equal(changed["image"], batch["image_2"])
    np.testing.assert_array_equal(changed["input_ids"], batch["input_ids"][:, 1])
    del batch["image_2"]
    with pytest.raises(UserError, match=r"image\.views=2"):
        SecondImageOfNthText(0)(batch, jax.random.key(0))
