"""Without these, rows that belong together could be pushed apart, or the wrong rows drawn together."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.soft_contrast import (
    clinical_prior,
    relax_positives,
    same_group,
    target_contrast,
)

B = 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, B)).astype(np.float32) * 4
TARGETS = RNG.random((B, B)).astype(np.float32)
TARGETS[3] = 0  # an anchor that belongs to nothing
MASKS = [None, [1, 0, 1, 1, 0, 1]]


def log_softmax(row: list[float], j: int) -> float:
    return row[j] - math.log(sum(math.exp(v) for v in row))


def size(row: list[float], normalise: str) -> float:
    if normalise == "none":
        return 1.0
    total = sum(row) if normalise == "sum" else math.sqrt(sum(v * v for v in row))
    return total or 1.0


def loop(logits, targets, real, normalise: str, weight: float) -> float:
    total = 0.0
    for scores, wanted, share in ((logits, targets, weight), (logits.T, targets.T, 1 - weight)):
        for i in real:
            row = [float(scores[i, j]) for j in real]
            y = [float(wanted[i, j]) for j in real]
            scale = size(y, normalise)
            for j in range(len(real)):
                total -= share * y[j] / scale * log_softmax(row, j) / len(real)
    return total


@pytest.mark.parametrize("normalise", ["sum", "l2", "none"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weight", [0.5, 0.75])
def test_numpy_loop(normalise, mask, weight) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = target_contrast(
        LOGITS,
        TARGETS,
        normalise=normalise,
        image_to_text_weight=weight,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    wanted = loop(LOGITS, TARGETS, real, normalise, weight)
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_single_positives_are_info_nce() -> None:
    x = RNG.normal(size=(2, B, 5)).astype(np.float32)
    groups = np.arange(B)
    for normalise in ("sum", "l2", "none"):
        got = target_contrast(5 * x[0] @ x[1].T, same_group(groups), normalise=normalise)
        assert float(got) == pytest.approx(float(info_nce(x[0], x[1], 5.0)), rel=1e-5)


def test_rows_of_one_group_share_the_target() -> None:
    groups = np.array([4, 4, 9, 4, 1, 9])
    wanted = np.array([[float(a == b) for b in groups] for a in groups])
    np.testing.assert_array_equal(same_group(groups), wanted)
    # All of one group: the minimum, log B, is where all are equally similar.
    one = target_contrast(np.zeros((B, B)), same_group(np.zeros(B, int)))
    assert float(one) == pytest.approx(math.log(B), rel=1e-6)
    grad = jax.grad(lambda l: target_contrast(l, same_group(np.zeros(B, int))))(
        jnp.zeros((B, B), jnp.float32)
    )
    np.testing.assert_allclose(grad, 0, atol=1e-7)
    # Two sides with their own groups; a pair stays a pair.
    other = same_group(groups, groups + 1)
    np.testing.assert_array_equal(np.asarray(other), np.eye(B))


def test_clinical_prior_by_hand() -> None:
    states = RNG.normal(size=(4, 7)).astype(np.float32)
    states[2] = -states[1]  # opposite reports are no positives
    states[3] = 5.0  # nothing to correlate
    wanted = np.eye(4)
    for i in range(3):
        for j in range(3):
            if i != j:
                r = np.corrcoef(states[i], states[j])[0, 1]
                wanted[i, j] = (1 - math.exp(-0.4 * max(r, 0))) * 0.2
    got = clinical_prior(states, strength=0.4, smoothing=0.2)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    grad = jax.grad(lambda s: clinical_prior(s).sum())(jnp.asarray(states))
    np.testing.assert_array_equal(grad, 0)


def test_a_close_pair_is_drawn_no_closer() -> None:
    similarity = np.array([[0.9, 0.8], [0.1, 0.4]], np.float32)
    got = relax_positives(similarity, np.eye(2), 0.6)
    np.testing.assert_allclose(got, [[0.6, 0.8], [0.1, 0.4]])

    def loss(s):
        return target_contrast(10 * relax_positives(s, np.eye(2), 0.6), np.eye(2))

    grad = np.asarray(jax.grad(loss)(jnp.asarray(similarity)))
    assert grad[0, 0] == 0
    assert grad[1, 1] < 0
    assert grad[0, 1] > 0


def test_targets_get_no_gradient() -> None:
    grad = jax.grad(lambda t: target_contrast(LOGITS, t))(jnp.asarray(TARGETS))
    np.testing.assert_array_equal(grad, 0)


def test_rows_with_equal_label_vectors_are_one_group() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0], [1, 1]], np.float32)
    wanted = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert same_group(labels).tolist() == wanted
    assert same_group(labels[:, :1]).tolist() == same_group(labels[:, 0]).tolist()
