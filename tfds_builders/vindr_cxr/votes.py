"""Several radiologists' labels and boxes of one image to one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

RULES = ("majority", "any", "all", "uncertain")
_SAME_BOX = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class DrawnBox:
    """One box.

    Attributes:
        label: index of the finding.
        edges: x_min, y_min, x_max, y_max in pixels.
        readers: who drew it; several after merging.
    """

    label: int
    edges: tuple[float, float, float, float]
    readers: tuple[str, ...]


def merge_labels(votes: np.ndarray, rule: str) -> np.ndarray:
    """One label vector of several.

    Args:
        votes: int8 [R, K] in {0, 1}, one row per radiologist.
        rule: "majority": 1 where more than half say so; "any"; "all"; "uncertain": -1 where they disagree.

    Returns:
        int8 [K].
    """
    count, readers = votes.sum(axis=0), len(votes)
    if rule == "uncertain":
        return np.where(count == readers, 1, np.where(count == 0, 0, -1)).astype(np.int8)
    return (count >= _needed(readers, rule)).astype(np.int8)


def merge_boxes(boxes: Sequence[DrawnBox], readers: int, rule: str) -> list[DrawnBox]:
    """Means of the boxes that several radiologists drew around the same thing: the same finding with an
    intersection over union of at least one half with the mean so far, in the order of the table.

    Args:
        boxes: boxes of one image, one reader each.
        readers: radiologists who read the image.
        rule: boxes of fewer radiologists than it needs are left out; "uncertain" keeps all.
    """
    groups: list[list[DrawnBox]] = []
    for box in boxes:
        best, overlap = None, _SAME_BOX
        for group in groups:
            seen = {name for member in group for name in member.readers}
            if group[0].label != box.label or seen & set(box.readers):
                continue
            found = intersection_over_union(_mean(group).edges, box.edges)
            if found >= overlap:
                best, overlap = group, found
        if best is None:
            groups.append([box])
        else:
            best.append(box)
    least = 1 if rule == "uncertain" else _needed(readers, rule)
    return [_mean(group) for group in groups if len(group) >= least]


def _needed(readers: int, rule: str) -> int:
    """How many of the radiologists must agree."""
    return {"any": 1, "all": readers, "majority": readers // 2 + 1}[rule]


def _mean(group: Sequence[DrawnBox]) -> DrawnBox:
    edges = np.mean([box.edges for box in group], axis=0).tolist()
    readers = tuple(name for box in group for name in box.readers)
    return DrawnBox(group[0].label, (edges[0], edges[1], edges[2], edges[3]), readers)


def intersection_over_union(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> float:
    """Of two boxes (x_min, y_min, x_max, y_max); 0 where one has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / (sum(areas) - width * height)
