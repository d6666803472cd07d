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
from medvlp_jax.objectives.cross_lingual import CrossLingual
from medvlp_jax.objectives.hierarchical_contrast import HierarchicalContrast
from medvlp_jax.objectives.limitr import Limitr
from medvlp_jax.objectives.local_intra_sample import LocalIntraSample
from medvlp_jax.objectives.local_mutual_information import LocalMutualInformation
from medvlp_jax.objectives.matching_triplet import MatchingTriplet
from medvlp_jax.objectives.mflag import Mflag
from medvlp_jax.objectives.nt_xent import NtXent
from medvlp_jax.objectives.prior_local import PriorLocal
from medvlp_jax.objectives.tier import Tier
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
        "study_id": np.arange(ROWS, dtype=np.int32),
        "attention_mask": words.astype(np.int32),
        "text_present": np.ones((ROWS, 2), np.float32),
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
        "image_pooled": normal(ROWS, 5),
        "text_pooled": normal(ROWS, 6),
        "image_hidden": tuple(normal(ROWS, 8 >> i, 8 >> i, 4 + i) for i in range(4)),
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


def passes_of(objective: Objective, step: Pass) -> tuple[Pass, ...]:
    """The clean pass, then for each further corruption one whose outputs differ a little."""

    def other(x: Any) -> Any:
        return x + 0.1 * jnp.sin(3 * x)

    changed = Pass(step.batch, jax.tree.map(other, step.outputs))
    return (step, *[changed] * (len(objective.corruptions()) - 1))


def evaluate(objective: Objective, step: Pass, variables: Any = None):
    """Loss, metrics and variables (fresh ones unless given)."""

    @jax.jit
    def run(variables: Any, step: Pass):
        passes = passes_of(objective, step)
        if variables is None:
            variables = objective.init(jax.random.key(0), passes, train=False)
        return (*objective.apply(variables, passes, train=False), variables)

    return run(variables, step)


def rows_of(step: Pass, rows: slice) -> Pass:
    return Pass(*jax.tree.map(lambda x: x[rows], tuple(step)))


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
    "mi": (LocalMutualInformation(hidden=(8, 4), max_sentences=3), STATES),
    "mi_dv": (LocalMutualInformation(hidden=(8,), max_sentences=3, estimator="dv"), STATES),
    "mi_dot": (
        LocalMutualInformation(hidden=(), features=8, max_sentences=3, estimator="jsd"),
        STATES,
    ),
    "tier": (Tier(), TOKENS),
    "tier_released": (Tier(variant="released"), TOKENS),
    "mflag": (Mflag(), (*EMBEDS, "image_pooled")),
    "mflag_released": (Mflag(variant="released", denominator=9.0), (*EMBEDS, "image_pooled")),
    "med_unic": (CrossLingual(features=8, hidden=16), ("text_pooled",)),
    "med_unic_released": (
        CrossLingual(features=8, hidden=16, variant="released"),
        ("text_pooled",),
    ),
    "med_unic_vicreg": (CrossLingual(features=8, hidden=16, method="vicreg"), ("text_pooled",)),
    "imitate": (
        HierarchicalContrast(features=8, pool_size=4, shares=(0.5,) * 4),
        ("image_hidden", "image_pooled"),
    ),
    "matching_triplet": (MatchingTriplet(), EMBEDS),
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
    loss, _, variables = evaluate(objective, padded)
    cut, _, _ = evaluate(objective, rows_of(padded, slice(REAL)), variables)
    np.testing.assert_allclose(loss, cut, rtol=1e-5)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()

    @jax.jit
    def gradient(chosen: dict[str, Any], variables: Any) -> Any:
        def loss_of(changed: dict[str, Any]) -> jax.Array:
            step = Pass(padded.batch, {**padded.outputs, **changed})
            passes = passes_of(objective, step)
            return objective.apply(variables, passes, train=False)[0]

        return jax.grad(loss_of)(chosen)

    for key, grads in gradient({k: padded.outputs[k] for k in reached}, variables).items():
        for grad in jax.tree.leaves(grads):
            assert np.isfinite(grad).all(), key
            assert np.abs(grad[:REAL]).max() > 1e-6, key
            np.testing.assert_array_equal(grad[REAL:], 0, err_msg=key)


DISTINCT = sorted(set(CASES) - {"mi_dv", "mi_dot", "prior", "lovt_attention", "tier_released"})


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("name", DISTINCT)
def test_stays_finite_without_anything_to_contrast(name, rows) -> None:
    """A batch of one, or of equal texts of one patient and study, the first of them empty."""
    objective, reached = CASES[name]
    step = rows_of(local_pass(), slice(rows))
    for key in ("text_id", "subject_id", "study_id"):
        step.batch[key][:] = 3
    step.batch["sentence_ids"][0] = -1
    step.batch["attention_mask"][0] = 0
    step.outputs["text_token_mask"][0] = 0
    step.outputs["text_embed"][:] = step.outputs["text_embed"][:1]

    @jax.jit
    def run(chosen: dict[str, Any]) -> Any:
        def loss_of(changed: dict[str, Any]) -> jax.Array:
            passes = passes_of(objective, Pass(step.batch, {**step.outputs, **changed}))
            return objective.init_with_output(jax.random.key(0), passes, train=False)[0][0]

        return jax.value_and_grad(loss_of)(chosen)

    loss, grads = run({key: step.outputs[key] for key in reached})
    assert np.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_missing_output_is_named(name) -> None:
    objective, reached = CASES[name]
    always = {*EMBEDS, "image_pooled", "text_pooled"}  # those every model has
    for key in set(reached) - always:
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


def test_imitate_leaves_out_rows_that_lack_a_section() -> None:
    objective = HierarchicalContrast(features=8, pool_size=4, shares=(0.5,) * 4)
    present = np.ones((ROWS, 2), np.float32)
    present[REAL:, 1] = 0
    step = local_pass(text_present=present)
    loss, metrics, variables = evaluate(objective, step)
    _, cut, _ = evaluate(objective, rows_of(step, slice(REAL)), variables)
    np.testing.assert_allclose(loss, sum(metrics.values()), rtol=1e-6)
    for part in ("findings", "impression"):
        np.testing.assert_allclose(metrics[part], cut[part], rtol=1e-5)
    assert abs(float(metrics["visual"]) - float(cut["visual"])) > 1e-4
    with pytest.raises(UserError, match=r"as model\.image_encoder\.name='resnet' returns them"):
        evaluate(objective, local_pass(image_hidden=(np.ones((ROWS, 3, 4)),) * 4))


def test_mutual_information_leaves_out_images_of_the_same_study() -> None:
    objective = LocalMutualInformation(hidden=(8,), max_sentences=3)
    loss, _, variables = evaluate(objective, local_pass())
    twins = local_pass(study_id=np.array([0, 0, 1, 2, 3, 4], np.int32))
    assert abs(float(evaluate(objective, twins, variables)[0]) - float(loss)) > 1e-5


FIELDS = {
    LocalMutualInformation: ("estimator", "variant", "select"),
    Tier: ("variant",),
    Mflag: ("variant",),
    CrossLingual: ("method", "variant"),
    Limitr: ("variant", "duplicates"),
    LocalIntraSample: ("weights",),
    HierarchicalContrast: ("pooling",),
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_unknown_choices_are_refused(kind) -> None:
    for field in FIELDS[kind]:
        with pytest.raises(UserError, match=f"{field}='other': choose"):
            evaluate(kind(**{field: "other"}), local_pass())


def test_prior_has_its_own_scale() -> None:
    objective = PriorLocal(features=8, max_sentences=3, local_temperature=0.1)
    _, metrics, variables = evaluate(objective, local_pass())
    assert float(metrics["local_scale"]) == pytest.approx(10, rel=1e-5)
    assert "log_logit_scale" not in variables["params"]
    variables["params"]["log_local_scale"] = jnp.asarray(9.0)
    assert float(evaluate(objective, local_pass(), variables)[1]["local_scale"]) == pytest.approx(
        100, rel=1e-5
    )
    _, metrics, variables = evaluate(objective.clone(learnable=False), local_pass())
    assert float(metrics["local_scale"]) == pytest.approx(10, rel=1e-5)
    assert "log_local_scale" not in variables["params"]
