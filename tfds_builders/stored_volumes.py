"""Volumes in the form in which all datasets store them: encoded slices and the spacing of voxels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.images import encode_for_storage


def volume_features(quality: int) -> dict[str, Any]:
    """Features of a volume: its slices [D] and the spacing (D, H, W) in millimetres.

    Args:
        quality: of JPEG; 0 stores PNG.
    """
    encoding = "jpeg" if quality else "png"
    image = tfds.features.Image(shape=(None, None, 1), encoding_format=encoding)
    return {
        "slices": tfds.features.Sequence(image),
        "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }


def volume_values(
    volume: np.ndarray, spacing: tuple[float, float, float], quality: int
) -> dict[str, Any]:
    """Values of `volume_features`.

    Args:
        volume: uint8 [D, H, W].
        spacing: of D, H and W in millimetres; NaN where unknown.
        quality: as in `volume_features`.
    """
    kind = "jpeg" if quality else "png"
    slices = [io.BytesIO(encode_for_storage(s[:, :, None], kind, quality)) for s in volume]
    return {"slices": slices, "spacing": np.asarray(spacing, np.float32)}
