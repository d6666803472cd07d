"""Without these, a view could be its own negative, or its partner be missing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.nt_xent import nt_xent

B, D = 5, 4
RNG = np.random.default_rng(0)
VIEWS = RNG.normal(size=(2, B, D)).astype(np.float32)


def loop(views, real, temperature: float) -> float:
    names = [(side, i) for side in range(2) for i in real]
    total = 0.0
    for side, i in names:
        others = [name for name in names if name != (side, i)]
        scores = {n: math.exp(float(views[side, i] @ views[n]) / temperature) for n in others}
        total -= math.log(scores[1 - side, i] / sum(scores.values()))
    return total / len(names)


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1]])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_numpy_loop(mask, temperature) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = nt_xent(
        *VIEWS,
        temperature=temperature,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    assert float(got[0] + got[1]) / 2 == pytest.approx(loop(VIEWS, real, temperature), rel=1e-5)


def test_all_equal_is_log_of_the_number_of_others() -> None:
    same = np.ones((B, 1), np.float32)
    for loss in nt_xent(same, same):
        assert float(loss) == pytest.approx(math.log(2 * B - 1), rel=1e-6)


def test_one_image_has_only_its_partner() -> None:
    for loss in nt_xent(VIEWS[0, :1], VIEWS[1, :1]):
        assert float(loss) == pytest.approx(0, abs=1e-6)
