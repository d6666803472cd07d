"""Stored boxes and masks of findings to boolean pixels."""

from __future__ import annotations

import cv2
import numpy as np

from medvlp_jax.errors import UserError


def box_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels of any of the boxes.

    Args:
        boxes: [b, 4] ymin, xmin, ymax, xmax in [0, 1].
        height, width: of the image.

    Returns:
        bool [height, width]; each box has at least one pixel.
    """
    mask = np.zeros((height, width), bool)
    for ymin, xmin, ymax, xmax in np.asarray(boxes, np.float64).reshape(-1, 4):
        top, bottom = _span(ymin, ymax, height)
        left, right = _span(xmin, xmax, width)
        mask[top:bottom, left:right] = True
    return mask


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(round(low * size), size - 1)
    return start, max(start + 1, round(high * size))


def finding_mask(png: bytes, label: int) -> np.ndarray:
    """Pixels of one finding from a stored mask.

    Args:
        png: 16 bits: bit k is set where finding k is; 8 bits: above 127 where the dataset's finding is.
        label: k.

    Returns:
        bool [H, W].

    Raises:
        UserError: not an image of one channel.
    """
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if decoded is None or decoded.ndim != 2:
        raise UserError("a stored mask cannot be decoded: run `data check`, then build it again")
    stored = np.asarray(decoded)
    if stored.dtype == np.uint16:
        return np.bitwise_and(stored, np.uint16(1 << label)) > 0
    return stored > 127
