"""How well a map over an image agrees with a marked region; pixels that are NaN in the map do not count.

All take the map's known values [p] and, for the same pixels, whether they are in the region, bool [p].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = ("cnr", "signed_cnr", "miou", "dice", "pointing_game", "pointing_game_chance")

_ROUNDING = 1e-6  # of float32 cosines; a constant map differs by less from place to place


def score_map(
    similarity: np.ndarray, region: np.ndarray, thresholds: Sequence[float]
) -> dict[str, float]:
    """All metrics of one map.

    Args:
        similarity: [H, W], NaN where the model saw nothing.
        region: bool [H, W].
        thresholds: of the map's values, for mIoU and Dice.

    Returns:
        The metrics of `NAMES`; all NaN where the region has no pixel that the model saw.
    """
    seen = ~np.isnan(similarity)
    values, inside = similarity[seen].astype(np.float64), region[seen]
    if not inside.any():
        return dict.fromkeys(NAMES, float("nan"))
    contrast = signed_cnr(values, inside)
    called = [values >= t for t in thresholds]
    return {
        "cnr": abs(contrast),
        "signed_cnr": contrast,
        "miou": float(np.mean([iou(c, inside) for c in called])),
        "dice": float(np.mean([dice(c, inside) for c in called])),
        "pointing_game": pointing_game(values, inside),
        "pointing_game_chance": float(inside.mean()),
    }


def signed_cnr(values: np.ndarray, inside: np.ndarray) -> float:
    """Contrast-to-noise ratio (mean in - mean out) / sqrt(var in + var out); its absolute value is BioViL's
    CNR (arXiv 2204.09817, section 4). 0 for a constant map; NaN where the region or its outside is empty,
    or both are constant but differ."""
    if inside.all() or not inside.any():
        return float("nan")
    within, outside = values[inside], values[~inside]
    contrast = within.mean() - outside.mean()
    noise = np.sqrt(within.var() + outside.var())
    if noise <= _ROUNDING:
        return 0.0 if abs(contrast) <= _ROUNDING else float("nan")
    return float(contrast / noise)


def iou(called: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of two boolean arrays; NaN where both are empty."""
    union = np.count_nonzero(called | inside)
    return np.count_nonzero(called & inside) / union if union else float("nan")


def dice(called: np.ndarray, inside: np.ndarray) -> float:
    """2 x intersection over the sum of two boolean arrays; NaN where both are empty."""
    total = np.count_nonzero(called) + np.count_nonzero(inside)
    return 2 * np.count_nonzero(called & inside) / total if total else float("nan")


def pointing_game(values: np.ndarray, inside: np.ndarray) -> float:
    """1 where the largest value is in the region; of several largest ones, the share that is."""
    best = values >= values.max() - _ROUNDING
    return float(inside[best].mean())
