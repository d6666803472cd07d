"""Without these, the matching loss could count padded pairs or confuse its two classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.matching import matching

LOGITS = np.array([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 0.5]], np.float32)
LABELS = np.array([1, 1, 0, 0])


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 1, 0]])
def test_loop(mask: list[int]) -> None:
    rows = np.flatnonzero(mask)
    losses = [-math.log(np.exp(LOGITS[i, LABELS[i]]) / np.exp(LOGITS[i]).sum()) for i in rows]
    right = [LOGITS[i].argmax() == LABELS[i] for i in rows]
    loss, accuracy = matching(LOGITS, LABELS, example_mask=np.array(mask, np.float32))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-6)
    assert float(accuracy) == pytest.approx(np.mean(right))


def test_undecided_is_log_2() -> None:
    loss, _ = matching(np.zeros((4, 2)), LABELS)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)


def test_flipping_classes_and_labels_changes_nothing() -> None:
    a, _ = matching(LOGITS, LABELS)
    b, _ = matching(LOGITS[:, ::-1], 1 - LABELS)
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_one_row_and_no_row() -> None:
    assert float(matching(LOGITS[:1], LABELS[:1])[0]) == pytest.approx(math.log(1 + math.exp(-2)))
    assert [float(v) for v in matching(LOGITS, LABELS, example_mask=np.zeros(4))] == [0, 0]
