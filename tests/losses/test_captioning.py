"""Without these, a decoder could be trained to copy its input, or on padding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.captioning import captioning, next_token_labels

IDS = np.array([[2, 5, 6, 3, 0], [2, 7, 3, 0, 0], [2, 4, 4, 4, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(3, 5, 9)).astype(np.float32)


def loop(rows: list[int]) -> tuple[float, float]:
    """The definition: -log p(token i + 1 | position i) over all real tokens but the first."""
    losses, right = [], []
    for row in rows:
        for i in range(MASK[row].sum() - 1):
            scores, target = LOGITS[row, i].astype(np.float64), IDS[row, i + 1]
            losses.append(math.log(np.exp(scores).sum()) - scores[target])
            right.append(scores.argmax() == target)
    return float(np.mean(losses)), float(np.mean(right))


def test_labels_are_the_tokens_after() -> None:
    expected = [
        [5, 6, 3, -100, -100],
        [7, 3, -100, -100, -100],
        [4, 4, 4, 3, -100],
    ]
    assert next_token_labels(IDS, MASK).tolist() == expected


@pytest.mark.parametrize("mask", [[1, 1, 1], [1, 0, 1]])
def test_loop(mask: list[int]) -> None:
    loss, accuracy = captioning(LOGITS, IDS, MASK, example_mask=np.array(mask, np.float32))
    expected = loop([row for row in range(3) if mask[row]])
    assert float(loss) == pytest.approx(expected[0], rel=1e-6)
    assert float(accuracy) == pytest.approx(expected[1])


def test_even_scores_cost_the_logarithm_of_the_vocabulary() -> None:
    assert float(captioning(np.zeros((3, 5, 9)), IDS, MASK)[0]) == pytest.approx(math.log(9))


def test_padding_and_the_last_position_get_no_gradient() -> None:
    gradient = jax.grad(lambda x: captioning(x, IDS, MASK)[0])(jnp.asarray(LOGITS))
    asked = np.asarray(next_token_labels(IDS, MASK)) != -100
    assert np.array_equal(np.abs(gradient).max(axis=-1) > 0, asked)


def test_texts_without_a_token_to_predict_cost_nothing() -> None:
    for mask in (np.zeros_like(MASK), np.eye(1, 5, dtype=np.int32).repeat(3, axis=0)):
        assert [float(x) for x in captioning(LOGITS, IDS, mask)] == [0.0, 0.0]


def test_same_value_in_bfloat16_inputs_and_extreme_scores() -> None:
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    loss, _ = captioning(low, IDS, MASK)
    exact, _ = captioning(low.astype(jnp.float32), IDS, MASK)
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)
    assert np.isfinite(captioning(1e4 * LOGITS, IDS, MASK)[0])
