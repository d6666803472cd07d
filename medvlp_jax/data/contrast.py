"""Contrast of an image before it is stored: histogram equalisation, over all or in tiles."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

Equalise = Literal["none", "histogram", "clahe"]
EQUALISE: tuple[str, ...] = get_args(Equalise)

_CLIP_LIMIT = 2.0
_TILES = (8, 8)


def equalise(image: np.ndarray, method: Equalise) -> np.ndarray:
    """Spreads the grey values; of colour images only the luminance, so hues stay.

    `histogram` maps the grey values by their cumulative distribution, as MIMIC-CXR-JPG does to its
    windowed DICOM pixels (Johnson et al. 2019, arXiv 1901.07042). `clahe` does the same in 8 x 8 tiles,
    with the slope limited to twice that of a flat histogram (Zuiderveld, Graphics Gems IV, 1994).

    Args:
        image: uint8 [H, W, 1 or 3 (RGB)].
        method: "none" returns the image itself.

    Returns:
        uint8 of the same shape.
    """
    if method == "none":
        return image
    if image.shape[2] == 1:
        return _spread(image[:, :, 0], method)[:, :, None]
    # COLOR_RGB2YCrCb is exactly invertible up to rounding; its first channel is the luminance.
    parts = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2YCrCb)
    parts[:, :, 0] = _spread(parts[:, :, 0], method)
    return cv2.cvtColor(parts, cv2.COLOR_YCrCb2RGB)


def _spread(grey: np.ndarray, method: Equalise) -> np.ndarray:
    """One channel, uint8 [H, W]."""
    grey = np.ascontiguousarray(grey)
    if method == "histogram":
        return cv2.equalizeHist(grey)
    return cv2.createCLAHE(clipLimit=_CLIP_LIMIT, tileGridSize=_TILES).apply(grey)
