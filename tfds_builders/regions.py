"""Boxes and masks of findings in the form in which all datasets store them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.images import ImageError, encode_for_storage, resize_for_storage


def boxes_feature() -> Any:
    """Feature of boxes: (ymin, xmin, ymax, xmax) in [0, 1] and the index of the label."""
    return tfds.features.Sequence(
        {"bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32), "label": np.int64}
    )


def mask_feature() -> Any:
    """Feature of masks: a PNG as large as the stored image; 255 where the finding is."""
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png")


def relative_boxes(
    boxes: Iterable[tuple[float, float, float, float, int]], height: int, width: int
) -> list[dict[str, Any]]:
    """Boxes in pixels to the stored form; what leads out of the image is cut.

    Args:
        boxes: (x, y, width, height, label) with x, y the corner at the top left.
        height: of the original image.
        width: likewise.

    Raises:
        ImageError: a box without area inside the image.
    """
    stored = []
    for x, y, w, h, label in boxes:
        edges = np.asarray([y / height, x / width, (y + h) / height, (x + w) / width], np.float32)
        edges = edges.clip(0.0, 1.0)
        if not (edges[2] > edges[0] and edges[3] > edges[1]):
            raise ImageError(f"box x={x:g} y={y:g} w={w:g} h={h:g} is not in {width} x {height}")
        stored.append({"bbox": edges, "label": label})
    return stored


def decode_run_lengths(runs: str, height: int, width: int) -> np.ndarray:
    """Mask of the SIIM-ACR run lengths: pairs (pixels to skip since the last run, pixels to set), counted
    down the columns from the top left.

    Returns:
        bool [H, W].

    Raises:
        ImageError: not pairs of numbers, or more pixels than the image has.
    """
    try:
        numbers = np.asarray([int(part) for part in runs.split()], np.int64)
    except ValueError:
        raise ImageError(f"run lengths {runs[:40]!r} are not whole numbers") from None
    if numbers.size % 2 or (numbers < 0).any():
        raise ImageError(f"run lengths {runs[:40]!r} are not pairs of counts")
    if numbers.sum() > height * width:
        raise ImageError(f"run lengths cover {numbers.sum()} pixels of {width} x {height}")
    flat = np.zeros(height * width, bool)
    ends = np.cumsum(numbers)
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        flat[start:end] = True
    return flat.reshape(width, height).T


def stored_mask(mask: np.ndarray, size: int) -> bytes:
    """PNG of a mask, resized as its image is.

    Args:
        mask: bool [H, W] of the original image's size.
        size: shorter side of the stored image; 0 keeps the original size.
    """
    small = resize_for_storage(np.where(mask, 255, 0).astype(np.uint8)[:, :, None], size)
    return encode_for_storage(np.where(small > 127, 255, 0).astype(np.uint8), "png")
