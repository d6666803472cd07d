"""Without these, queries could miss their labels or embeddings, or unknown findings train the decoder."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.entity_query import EntityQuery

ROWS, LABELS, TOKENS, WIDTH, POSITIONS = 6, 5, 4, 12, 11
RNG = np.random.default_rng(0)
LABEL = RNG.integers(-1, 2, (ROWS, LABELS)).astype(np.float32)
KEYS = {"params": jax.random.key(0), "corruption": jax.random.key(1)}


def clean(**changes: Any) -> tuple[Pass, ...]:
    batch = {
        "label": LABEL,
        "label_mask": np.ones((ROWS, LABELS), np.float32),
        "example_mask": np.ones(ROWS, np.float32),
        **changes,
    }
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    return (Pass(batch, {"image_tokens": tokens}),)


def objective(**settings: Any) -> EntityQuery:
    return EntityQuery(decoder="test", **settings)


def positions() -> np.ndarray:
    where = np.full((ROWS, POSITIONS, LABELS), -2, np.int8)
    where[np.arange(ROWS), np.arange(ROWS), 0] = 1
    return where


def test_starts_at_log_2_and_reaches_decoder_and_queries() -> None:
    made, step = objective(), clean()
    variables = made.init(KEYS, step, train=False)
    assert variables["params"]["decoder"]["queries"].shape == (LABELS, 32)
    (loss, metrics), grads = jax.value_and_grad(
        lambda v: made.apply(v, step, train=False), has_aux=True
    )(variables)
    assert abs(float(loss) - math.log(2)) < 0.1
    np.testing.assert_allclose(loss, metrics["existence"])
    for part in ("queries", "context_projection", "block_1"):
        found = max(np.abs(x).max() for x in jax.tree.leaves(grads["params"]["decoder"][part]))
        assert found > 1e-6, part


def test_only_known_labels_and_real_rows_count() -> None:
    made = objective()
    mask = np.r_[np.ones(4), np.zeros(2)].astype(np.float32)
    known = RNG.integers(0, 2, LABEL.shape).astype(np.float32)
    step = clean(label_mask=known, example_mask=mask)
    variables = made.init(KEYS, step, train=False)
    loss, _ = made.apply(variables, step, train=False)
    other = np.where((known > 0) & (mask[:, None] > 0), LABEL, 1 - np.abs(LABEL))
    same, _ = made.apply(
        variables, clean(label=other, label_mask=known, example_mask=mask), train=False
    )
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    zeros, _ = objective(uncertain="zeros").apply(variables, step, train=False)
    assert abs(float(zeros) - float(loss)) > 1e-4


def test_queries_from_a_file_are_constants(tmp_path) -> None:
    table = RNG.normal(size=(LABELS, 7)).astype(np.float32)
    np.save(tmp_path / "queries.npy", table)
    made, step = objective(queries=str(tmp_path / "queries.npy")), clean()
    variables = made.init(KEYS, step, train=False)
    np.testing.assert_array_equal(variables["constants"]["query_embeddings"], table)
    assert variables["params"]["decoder"]["query_projection"]["kernel"].shape == (7, 32)
    before, _ = made.apply(variables, step, train=False)
    (tmp_path / "queries.npy").unlink()  # a trained run keeps them
    after, _ = made.apply(variables, step, train=False)
    assert float(before) == float(after)
    np.save(tmp_path / "queries.npy", table[1:])
    with pytest.raises(UserError, match="one row for each of 5"):
        made.init(KEYS, step, train=False)
    with pytest.raises(UserError, match="does not exist"):
        objective(queries=str(tmp_path / "none.npy")).init(KEYS, step, train=False)


def test_position_contrast() -> None:
    made = objective(location_weight=0.5, negatives=7)
    step = clean(entity_positions=positions())
    variables = made.init(KEYS, step, train=False)
    loss, metrics = made.apply(variables, step, train=False, rngs=KEYS)
    np.testing.assert_allclose(loss, metrics["existence"] + 0.5 * metrics["position"], rtol=1e-6)
    assert abs(float(metrics["position"]) - math.log(8)) < 0.2
    absent = clean(entity_positions=positions(), label=np.zeros_like(LABEL))
    _, metrics = made.apply(variables, absent, train=False, rngs=KEYS)
    assert float(metrics["position"]) == 0
    with pytest.raises(UserError, match="entity_positions"):
        made.init(KEYS, clean(), train=False)


def test_dropout_in_training_and_bfloat16() -> None:
    made, step = objective(dtype=jnp.bfloat16), clean()
    variables = made.init(KEYS, step, train=False)
    still, _ = made.apply(variables, step, train=False)
    moved, _ = made.apply(variables, step, train=True, rngs={"dropout": jax.random.key(5)})
    assert still.dtype == moved.dtype == jnp.float32
    assert float(still) != float(moved)


def test_refuses_what_it_cannot_use() -> None:
    with pytest.raises(UserError, match="ignore or zeros"):
        objective(uncertain="ones").init(KEYS, clean(), train=False)
    with pytest.raises(UserError, match="entity_query decoder"):
        EntityQuery(decoder="large").init(KEYS, clean(), train=False)
    empty = np.zeros((ROWS, 0), np.float32)
    with pytest.raises(UserError, match="has none"):
        objective().init(KEYS, clean(label=empty, label_mask=empty), train=False)
