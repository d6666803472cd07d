"""Without these, a local objective could read padding, skip a tower, or fail on the real models' outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses import word_region as word_region_loss
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.limitr import Limitr
from medvlp_jax.objectives.local_intra_sample import LocalIntraSample
from medvlp_jax.objectives.nt_xent import NtXent
from medvlp_jax.objectives.prior_local import PriorLocal
from medvlp_jax.objectives.uniformity import Uniformity
from medvlp_jax.objectives.word_region import WordRegion

ROWS, WIDTH, REGIONS, LENGTH = 6, 8, 9, 7
REAL = ROWS - 2


def local_pass(seed: int = 0, **changes: Any) -> Pass:
    """A clean pass with everything that a local objective may read; all rows are real."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    embeds = normal(2, ROWS, WIDTH)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    words = (np.arange(LENGTH) < np.array([7, 5, 4, 6, 2, 3])[:, None]).astype(np.float32)
    batch = {
        "text_id": np.arange(ROWS, dtype=np.int32),
        "subject_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
        # Two or three sentences, with a special token before and after them.
        "sentence_ids": np.where(words > 0, np.arange(LENGTH) // 2, -1).astype(np.int32),
    }
    outputs = {
        "image_embed": embeds[0],
        "text_embed": embeds[1],
        "image_token_embed": normal(ROWS, REGIONS, WIDTH),
        "text_token_embed": normal(ROWS, LENGTH, WIDTH),
        "text_token_mask": words,
        "image_tokens": normal(ROWS, REGIONS, 5),
        "text_states": normal(ROWS, LENGTH, 6),
        "image_attention": attention(rng.random((ROWS, 2, REGIONS + 1, REGIONS + 1))),
        "text_attention": attention(rng.random((ROWS, 2, LENGTH, LENGTH))),
    }
    for key, value in changes.items():
        (outputs if key in outputs else batch)[key] = value
    return Pass(batch, outputs)


def attention(x: np.ndarray) -> np.ndarray:
    return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)


def evaluate(objective: Objective, step: Pass, params: Any = None):
    """Loss, metrics and parameters (fresh ones unless given)."""

    @jax.jit
    def run(params: Any, step: Pass):
        variables = {"params": params or {}}
        if params is None:
            variables = objective.init(jax.random.key(0), (step,), train=False)
        loss, metrics = objective.apply(variables, (step,), train=False)
        return loss, metrics, variables.get("params", {})

    return run(params, step)


def rows_of(step: Pass, rows: slice) -> Pass:
    return Pass(*({k: v[rows] for k, v in part.items()} for part in step))


STATES = ("image_tokens", "text_states")
EMBEDS = ("image_embed", "text_embed")
SMALL: dict[str, Any] = dict(features=8, hidden=16, max_sentences=3)
TOKENS = ("image_token_embed", "text_token_embed")
CASES: dict[str, tuple[Objective, tuple[str, ...]]] = {
    "word_region": (WordRegion(), TOKENS),
    "word_region_released": (WordRegion(variant="released", duplicates="mask_patient"), TOKENS),
    "word_region_triplet": (WordRegion(triplet_weight=2.0, words_first=True, tile=None), TOKENS),
    "limitr": (Limitr(tile=4), TOKENS),
    "prior": (PriorLocal(features=8, max_sentences=3), STATES),
    "prior_global": (
        PriorLocal(features=8, max_sentences=3, global_weight=1.0, global_temperature=0.1),
        (*STATES, "image_embed"),
    ),
    "nt_xent": (NtXent(), EMBEDS),
    "uniformity": (Uniformity(), EMBEDS),
    "lovt": (LocalIntraSample(**SMALL), STATES),
    "lovt_attention": (LocalIntraSample(**SMALL, weights="attention"), STATES),
    "local_uniformity": (
        LocalIntraSample(**SMALL, contrast_weight=0, alignment_weight=1, uniformity_weight=0.5),
        STATES,
    ),
}
"""Name -> objective, and the outputs whose gradient it must give."""


@pytest.mark.parametrize("name", sorted(CASES))
def test_padded_rows_do_not_count(name) -> None:
    objective, reached = CASES[name]
    mask = np.r_[np.ones(REAL), np.zeros(2)].astype(np.float32)
    # The padded rows even carry a text that a real row has.
    text_id = np.r_[np.arange(REAL), 0, 0].astype(np.int32)
    padded = local_pass(example_mask=mask, text_id=text_id)
    loss, _, params = evaluate(objective, padded)
    cut, _, _ = evaluate(objective, rows_of(padded, slice(REAL)), params)
    np.testing.assert_allclose(loss, cut, rtol=1e-5)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()

    def loss_of(changed: dict[str, jax.Array]) -> jax.Array:
        step = Pass(padded.batch, {**padded.outputs, **changed})
        return objective.apply({"params": params}, (step,), train=False)[0]

    for key, grad in jax.jit(jax.grad(loss_of))({k: padded.outputs[k] for k in reached}).items():
        assert np.isfinite(grad).all(), key
        assert np.abs(grad[:REAL]).max() > 1e-5, key
        np.testing.assert_array_equal(grad[REAL:], 0, err_msg=key)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_missing_output_is_named(name) -> None:
    objective, reached = CASES[name]
    for key in set(reached) - set(EMBEDS):  # those every model has
        step = local_pass()
        del step.outputs[key]
        with pytest.raises(UserError, match=rf"needs {key}.*model\."):
            evaluate(objective, step)


def test_word_region_adds_its_parts() -> None:
    step = local_pass()
    scores = word_region_loss.word_region_scores(
        *(step.outputs[k] for k in TOKENS), step.outputs["text_token_mask"], temp1=3.0, agg="mean"
    )
    contrast = sum(word_region_loss.word_region(scores, step.outputs["text_token_mask"], temp3=2.0))
    triplet = sum(word_region_loss.matching_triplet(scores, margin=0.1))
    options = dict(temp1=3.0, agg="mean", temp3=2.0, margin=0.1, triplet_weight=2.0)
    loss, metrics, _ = evaluate(WordRegion(**options, contrast_weight=0.5), step)
    np.testing.assert_allclose(loss, 0.5 * contrast + 2.0 * triplet, rtol=1e-5)
    np.testing.assert_allclose(metrics["triplet"], triplet, rtol=1e-5)


@pytest.mark.parametrize("field", ["variant", "agg", "duplicates"])
def test_word_region_refuses_unknown_choices(field) -> None:
    with pytest.raises(UserError, match=f"word_region {field}='other': choose"):
        evaluate(WordRegion(**{field: "other"}), local_pass())


def test_lovt_needs_sentences_attention_and_a_grid() -> None:
    step = local_pass()
    del step.batch["sentence_ids"]
    with pytest.raises(UserError, match=r"sentence_ids.*data\.text\.sentence_ids"):
        evaluate(LocalIntraSample(**SMALL), step)
    for side in ("image", "text"):
        step = local_pass()
        del step.outputs[f"{side}_attention"]
        with pytest.raises(UserError, match=rf"model\.{side}_encoder\.last_attention"):
            evaluate(LocalIntraSample(**SMALL, weights="attention"), step)
    with pytest.raises(UserError, match="9 regions do not fill a grid of 2x4"):
        evaluate(LocalIntraSample(**SMALL, grid=(2, 4)), local_pass())
    loss, _, params = evaluate(LocalIntraSample(**SMALL, grid=(1, 9)), local_pass())
    other, _, _ = evaluate(LocalIntraSample(**SMALL), local_pass(), params)
    assert abs(float(loss) - float(other)) > 1e-4  # other neighbours


def test_lovt_parts_are_switched_by_their_weights() -> None:
    sides = ("regions", "sentences")
    for part in ("contrast", "alignment", "uniformity"):
        weights = {
            f"{p}_weight": 2.0 * (p == part) for p in ("contrast", "alignment", "uniformity")
        }
        loss, metrics, _ = evaluate(LocalIntraSample(**SMALL, **weights), local_pass())
        assert set(metrics) == {f"{side}_{part}" for side in sides}
        np.testing.assert_allclose(loss, 2 * sum(metrics.values()), rtol=1e-5)


def test_sentences_beyond_the_first_do_not_count() -> None:
    objective = LocalIntraSample(**{**SMALL, "max_sentences": 2})
    step = local_pass()
    loss, _, params = evaluate(objective, step)
    late = step.batch["sentence_ids"] >= 2
    assert late.any()
    step.outputs["text_states"][late] = 5.0
    np.testing.assert_allclose(evaluate(objective, step, params)[0], loss, rtol=1e-6)
