"""Without these, neutral reports of SAT could count, or positives compete with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.triage import triage, triaged_contrast

B = 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, B)).astype(np.float32) * 3
SIMILARITY = RNG.uniform(0.9, 1.0, (B, B)).astype(np.float32)
SIMILARITY = np.maximum(SIMILARITY, SIMILARITY.T)
SIMILARITY[np.arange(B), np.arange(B)] = 1


def loop(logits, similarity, real, weight: float, released: bool) -> float:
    total = 0.0
    for scores, share in ((logits, weight), (logits.T, 1 - weight)):
        for i in real:
            positives = [j for j in real if similarity[i, j] >= 0.98]
            negatives = [j for j in real if similarity[i, j] <= 0.97]
            row = 0.0
            for p in positives:
                top = math.exp(scores[i, p])
                term = -math.log(top / (top + sum(math.exp(scores[i, n]) for n in negatives)))
                row += term / (1 + len(negatives)) if released else term
            total += share * row / len(positives) / len(real)
    return total


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0, 1]])
@pytest.mark.parametrize("weight", [0.5, 0.75])
def test_numpy_loop(variant, mask, weight) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    positives, negatives = triage(SIMILARITY)
    got = triaged_contrast(
        LOGITS,
        positives,
        negatives,
        image_to_text_weight=weight,
        variant=variant,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    wanted = loop(LOGITS, SIMILARITY, real, weight, variant == "released")
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_triage_by_hand() -> None:
    scores = np.array([[1.0, 0.98, 0.975], [0.98, 0.0, 0.97], [0.975, 0.97, 1.0]], np.float32)
    positives, negatives = triage(scores)
    wanted = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # the empty report in row 1 stays its own positive
    np.testing.assert_array_equal(positives, np.array(wanted, bool))
    np.testing.assert_array_equal(negatives, np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], bool))
    strict, far = triage(scores, positive=0.99, negative=0.5)
    np.testing.assert_array_equal(strict, np.eye(3, dtype=bool))
    assert not np.any(far)


def test_without_neutral_and_further_positive_reports_it_is_info_nce() -> None:
    x = RNG.normal(size=(2, B, 5)).astype(np.float32)
    own = np.eye(B, dtype=bool)
    got = triaged_contrast(4 * x[0] @ x[1].T, own, ~own)
    assert float(got) == pytest.approx(float(info_nce(x[0], x[1], 4.0)), rel=1e-5)


def test_all_reports_alike_is_zero() -> None:
    everything = np.ones((B, B), bool)
    assert float(triaged_contrast(LOGITS, everything, ~everything)) == 0
