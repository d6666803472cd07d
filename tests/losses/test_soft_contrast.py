"""Without these, the soft targets of MedCLIP could follow the wrong axis or the wrong variant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.soft_contrast import label_similarity, soft_contrast

B, D, K = 6, 5, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, B)).astype(np.float32) * 4
IMAGE_LABEL = RNG.integers(-1, 2, (B, K)).astype(np.float32)
TEXT_LABEL = RNG.integers(-1, 2, (B, K)).astype(np.float32)
TEXT_LABEL[2] = 0  # a text without any finding


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def loop(logits, targets, real) -> float:
    total = 0.0
    for scores, wanted in ((logits, targets), (logits.T, targets.T)):
        for i in real:
            share = softmax([float(wanted[i, j]) for j in real])
            predicted = softmax([float(scores[i, j]) for j in real])
            total -= sum(p * math.log(q) for p, q in zip(share, predicted, strict=True))
    return total / 2 / len(real)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0, 1]])
def test_numpy_loop(cosine, mask) -> None:
    targets = np.zeros((B, B))
    for i in range(B):
        for j in range(B):
            targets[i, j] = IMAGE_LABEL[i] @ TEXT_LABEL[j]
            if cosine and targets[i, j]:
                norms = np.linalg.norm(IMAGE_LABEL[i]) * np.linalg.norm(TEXT_LABEL[j])
                targets[i, j] /= norms
    similarity = label_similarity(IMAGE_LABEL, TEXT_LABEL, cosine=cosine)
    np.testing.assert_allclose(similarity, targets, atol=1e-6)
    real = [i for i in range(B) if mask is None or mask[i]]
    got = soft_contrast(
        LOGITS, similarity, example_mask=None if mask is None else np.array(mask, np.float32)
    )
    assert float(got) == pytest.approx(loop(LOGITS, targets, real), rel=1e-5)


def test_cosine_by_hand() -> None:
    a = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [-1, 0, 0]], np.float32)
    h = 1 / math.sqrt(2)
    wanted = [[1, h, 0, -1], [h, 1, 0, -h], [0, 0, 0, 0], [-1, -h, 0, 1]]
    np.testing.assert_allclose(label_similarity(a, a), wanted, atol=1e-6)
    np.testing.assert_allclose(label_similarity(3 * a, a), wanted, atol=1e-6)
    np.testing.assert_allclose(label_similarity(a, a, cosine=False)[1], [1, 2, 0, -1])


def test_uniform_targets_and_logits_are_log_b() -> None:
    zero = np.zeros((B, B), np.float32)
    assert float(soft_contrast(zero, zero)) == pytest.approx(math.log(B), rel=1e-6)


def test_one_hot_targets_are_info_nce() -> None:
    x = RNG.normal(size=(2, B, D)).astype(np.float32)
    hard = soft_contrast(5 * x[0] @ x[1].T, 1e3 * np.eye(B))
    assert float(hard) == pytest.approx(float(info_nce(x[0], x[1], 5.0)), rel=1e-5)


def test_minimum_is_the_entropy_of_the_targets() -> None:
    targets = np.array([[2.0, 1.0], [1.0, 2.0]])
    p = softmax([2.0, 1.0])
    entropy = -sum(v * math.log(v) for v in p)
    assert float(soft_contrast(targets, targets)) == pytest.approx(entropy, rel=1e-6)
    assert float(soft_contrast(1.5 * targets, targets)) > entropy
