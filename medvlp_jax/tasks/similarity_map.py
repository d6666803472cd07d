"""Similarity maps of BioViL: smoothed on the patch grid, then laid over the image as it is stored."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from medvlp_jax.data.options import ImageOptions

Interpolation = Literal["nearest", "bilinear"]


def smooth(similarity: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Gaussian filter of a map [h, w], in patches (BioViL, arXiv 2204.09817, released code: 1.5)."""
    return ndimage.gaussian_filter(similarity, sigma=sigma) if sigma else similarity


def to_image_size(
    similarity: np.ndarray,
    height: int,
    width: int,
    image: ImageOptions,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Lays a map over the stored image, undoing resizing and cropping.

    With `fit="crop"` as BioViL's released code does: the map covers the middle square with a side of
    int(size x shorter side / resize) pixels. With `fit="pad"` the map's padded part is cut off.

    Args:
        similarity: [h, w].
        height, width: of the stored image.
        image: how the model's input was made from it.
        interpolation: both follow PyTorch (bilinear: align_corners=False).

    Returns:
        [height, width]; NaN where the model saw nothing.
    """
    if image.fit == "pad":
        spans = []
        for length, cells in zip((height, width), similarity.shape, strict=True):
            # As `transforms.pad_to_square` rounds.
            inner = max(1, round(length * image.size / max(height, width)))
            start = (image.size - inner) // 2
            spans.append((start * cells / image.size, (start + inner) * cells / image.size))
        return interpolate(similarity, height, width, interpolation, tuple(spans))
    side = int(image.size * min(height, width) / (image.resize or image.size))
    top, left = (height - side) // 2, (width - side) // 2
    placed = np.full((height, width), np.nan, similarity.dtype)
    placed[top : top + side, left : left + side] = interpolate(
        similarity, side, side, interpolation
    )
    return placed


def interpolate(
    similarity: np.ndarray,
    height: int,
    width: int,
    interpolation: Interpolation,
    spans: tuple[tuple[float, float], ...] = (),
) -> np.ndarray:
    """Resizes a map [h, w], or the part of it within `spans` of rows and columns, to [height, width]."""
    rows, columns = spans or tuple((0.0, float(cells)) for cells in similarity.shape)
    if interpolation == "nearest":
        return similarity[_nearest(rows, height)][:, _nearest(columns, width)]
    down = _linear(rows, similarity.shape[0], height)
    across = _linear(columns, similarity.shape[1], width)
    return (down @ similarity @ across.T).astype(similarity.dtype)


def _nearest(span: tuple[float, float], target: int) -> np.ndarray:
    """The cell of each of `target` places, as PyTorch's mode "nearest" rounds."""
    low, high = span
    return np.floor(low + np.arange(target) * (high - low) / target).astype(int)


def _linear(span: tuple[float, float], source: int, target: int) -> np.ndarray:
    """Weights [target, source] of linear interpolation between the centres of cells."""
    start, stop = span
    place = start + (np.arange(target) + 0.5) * (stop - start) / target - 0.5
    place = place.clip(0.0, source - 1.0)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (place - low))
    np.add.at(weights, (np.arange(target), high), place - low)
    return weights
