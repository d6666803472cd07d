"""Without these, a wrong partner could need the wrong margin, or a padded row be one."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp_jax.losses.ranking import ranking, severity_margins

B = 6
RNG = np.random.default_rng(0)
SCORES = RNG.uniform(-1, 1, (B, B)).astype(np.float32)
SEVERITY = np.array([0, 3, 1, 1, 2, 0], np.float32)
KNOWN = np.array([1, 1, 1, 0, 1, 1], np.float32)
STUDY = np.array([7, 7, 8, 9, 4, 5])


def margin(i: int, j: int) -> float:
    if STUDY[i] == STUDY[j]:
        return 0.0
    if not (KNOWN[i] and KNOWN[j]):
        return 0.5
    return max(0.5, abs(float(SEVERITY[i] - SEVERITY[j])))


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("rows", [None, [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]])
def test_numpy_loop(variant, rows) -> None:
    real = [i for i in range(B) if rows is None or rows[i]]
    wanted = [0.0, 0.0]
    for place, i in enumerate(real):
        partners = [j for j in real if j != i]
        if variant == "released":
            partners = [j for j in [real[(place + 1) % len(real)]] if j != i]
        for j in partners:
            weight = 1 / (len(real) * len(partners))
            wanted[0] += weight * max(0.0, SCORES[i, j] - SCORES[i, i] + margin(i, j))
            wanted[1] += weight * max(0.0, SCORES[j, i] - SCORES[i, i] + margin(i, j))
    got = ranking(
        SCORES,
        severity_margins(SEVERITY, KNOWN, STUDY),
        variant=variant,
        example_mask=None if rows is None else np.array(rows, np.float32),
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_pairs_that_lead_by_the_margin_cost_nothing() -> None:
    margins = severity_margins(SEVERITY, KNOWN, STUDY)
    assert [float(x) for x in ranking(3.0 * np.eye(B), margins)] == [0.0, 0.0]
    assert ranking(2.9 * np.eye(B), margins)[0] > 0  # severities 0 and 3 must be 3 apart
