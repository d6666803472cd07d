"""Without these, a map that points away from the finding, or at nothing, could score."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp_jax.tasks import region_metrics
from medvlp_jax.tasks.region_metrics import dice, iou, pointing_game, score_map, signed_cnr

INSIDE = np.array([True, True, False, False])


def test_cnr_by_hand() -> None:
    # means 3 and 1; variances 1 and 0: (3 - 1) / 1
    assert signed_cnr(np.array([2.0, 4.0, 1.0, 1.0]), INSIDE) == 2.0
    # variances 1 and 4
    assert signed_cnr(np.array([2.0, 4.0, -1.0, 3.0]), INSIDE) == pytest.approx(2 / 5**0.5)
    away = signed_cnr(np.array([1.0, 1.0, 2.0, 4.0]), INSIDE)
    assert away == -2.0
    found = score_map(np.array([[1.0, 1.0, 2.0, 4.0]]), INSIDE[None], (0.5,))
    assert found["cnr"] == 2.0
    assert found["signed_cnr"] == -2.0


def test_cnr_does_not_depend_on_scale_and_offset() -> None:
    values = np.random.default_rng(0).normal(size=4)
    assert signed_cnr(5 * values - 3, INSIDE) == pytest.approx(signed_cnr(values, INSIDE))


def test_cnr_without_contrast_or_without_a_side() -> None:
    assert signed_cnr(np.full(4, 0.3), INSIDE) == 0.0
    assert signed_cnr(np.float64(np.float32(0.3)) + np.array([0, 1e-8, 0, -1e-8]), INSIDE) == 0.0
    assert np.isnan(signed_cnr(np.arange(4.0), np.ones(4, bool)))
    assert np.isnan(signed_cnr(np.arange(4.0), np.zeros(4, bool)))
    assert np.isnan(signed_cnr(np.array([1.0, 1.0, 0.0, 0.0]), INSIDE))  # infinite


def test_overlap_by_hand() -> None:
    called = np.array([True, False, True, False])
    assert iou(called, INSIDE) == pytest.approx(1 / 3)
    assert dice(called, INSIDE) == pytest.approx(2 / 4)
    assert iou(INSIDE, INSIDE) == dice(INSIDE, INSIDE) == 1.0
    nothing = np.zeros(4, bool)
    assert iou(nothing, INSIDE) == dice(nothing, INSIDE) == 0.0
    assert np.isnan(iou(nothing, nothing))
    assert np.isnan(dice(nothing, nothing))


def test_pointing_game_with_ties() -> None:
    assert pointing_game(np.array([0.0, 1.0, 0.5, 0.0]), INSIDE) == 1.0
    assert pointing_game(np.array([0.0, 0.4, 0.5, 0.0]), INSIDE) == 0.0
    assert pointing_game(np.array([0.0, 0.5, 0.5, 0.5]), INSIDE) == pytest.approx(1 / 3)
    # A map that says nothing is right as often as a random pixel.
    assert pointing_game(np.zeros(4), np.array([True, False, False, False])) == 0.25


def test_mean_over_thresholds() -> None:
    similarity = np.array([[0.45, 0.25, 0.25, 0.0]])
    found = score_map(similarity, INSIDE[None], (0.1, 0.2, 0.3, 0.4, 0.5))
    # >= 0.1, 0.2: three pixels, two right; 0.3, 0.4: one, right; 0.5: none
    assert found["miou"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2 + 1 / 2 + 0) / 5)
    assert found["dice"] == pytest.approx((4 / 5 + 4 / 5 + 2 / 3 + 2 / 3 + 0) / 5)
    assert found["pointing_game_chance"] == 0.5


def test_what_the_model_did_not_see_does_not_count() -> None:
    similarity = np.array([[1.0, 0.0, 0.2, np.nan, np.nan]])
    region = np.array([[True, False, False, True, False]])
    found = score_map(similarity, region, (0.5,))
    assert found["miou"] == found["dice"] == found["pointing_game"] == 1.0
    assert found["pointing_game_chance"] == pytest.approx(1 / 3)
    unseen = score_map(similarity, np.isnan(similarity), (0.5,))
    assert set(unseen) == set(region_metrics.NAMES)
    assert all(np.isnan(value) for value in unseen.values())
    assert np.isnan(score_map(similarity, np.zeros((1, 5), bool), (0.5,))["miou"])
