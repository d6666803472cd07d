"""Without these, unknown findings could count as absent, or a position be set against itself."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.entity_query import existence, position_contrast, sample_positions

B, Q, P, E = 4, 3, 9, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, Q, 2)).astype(np.float32) * 2
LABEL = np.array([[1, 0, -1], [0, 1, 1], [-1, 0, 1], [1, 1, 0]], np.float32)
KNOWN = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]], np.float32)
ROWS = np.array([1, 1, 1, 0], np.float32)


def loop(uncertain: str, known, rows) -> tuple[float, float]:
    losses, right = [], []
    for i in range(B):
        for q in range(Q):
            value = LABEL[i, q]
            if not rows[i] or not known[i, q] or (value < 0 and uncertain == "ignore"):
                continue
            wanted = int(value > 0)
            exp = [math.exp(v) for v in LOGITS[i, q]]
            losses.append(-math.log(exp[wanted] / sum(exp)))
            right.append(int(np.argmax(LOGITS[i, q])) == wanted)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("uncertain", ["ignore", "zeros"])
@pytest.mark.parametrize("masked", [False, True])
def test_existence_loop(uncertain, masked) -> None:
    known, rows = (KNOWN, ROWS) if masked else (np.ones_like(KNOWN), np.ones_like(ROWS))
    got = existence(
        LOGITS,
        LABEL,
        KNOWN if masked else None,
        uncertain=uncertain,
        example_mask=ROWS if masked else None,
    )
    np.testing.assert_allclose(got, loop(uncertain, known, rows), rtol=1e-5)


def test_nothing_known_is_zero() -> None:
    np.testing.assert_array_equal(existence(LOGITS, LABEL, np.zeros((B, Q))), 0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_position_loop(rows, scale) -> None:
    states = RNG.normal(size=(B, Q, E)).astype(np.float32)
    table = RNG.normal(size=(P, E)).astype(np.float32)
    candidates = RNG.integers(0, P, (B, Q, 4))
    losses = []
    for i in range(B):
        for q in range(Q):
            if LABEL[i, q] == 1 and (rows is None or rows[i]):
                exp = [math.exp(scale * float(states[i, q] @ table[c])) for c in candidates[i, q]]
                losses.append(-math.log(exp[0] / sum(exp)))
    got = position_contrast(states, table, candidates, LABEL, logit_scale=scale, example_mask=rows)
    assert float(got) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(position_contrast(states, table, candidates, 0 * LABEL)) == 0


def test_positions_are_drawn_from_the_right_side() -> None:
    where = np.zeros((B, P, Q), np.int8)
    where[0, 2, 0] = where[0, 5, 0] = 1  # two positions
    where[1, 3, 1] = -1  # uncertain, so none
    where[2, : P - 3, 2] = 1  # only three others are left
    seen = set()
    for seed in range(40):
        candidates, usable = sample_positions(jax.random.key(seed), where, negatives=4)
        assert candidates.shape == (B, Q, 5)
        assert np.argwhere(usable).tolist() == [[0, 0]]
        positive, *negatives = candidates[0, 0].tolist()
        seen.add(positive)
        assert len(set(negatives)) == 4
        assert not {2, 5} & set(negatives)
    assert seen == {2, 5}
    with pytest.raises(UserError, match="lower `negatives`"):
        sample_positions(jax.random.key(0), where, negatives=P)


def test_gradients_are_finite_at_extremes() -> None:
    for factor in (1e4, 0.0):
        grad = jax.grad(lambda x: existence(x, LABEL)[0])(jnp.asarray(LOGITS * factor))
        assert np.isfinite(grad).all()
