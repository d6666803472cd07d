"""Device side of the image path: uint8 batches to normalised float32, inside the jitted step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medvlp_jax.types import Array


def normalise(
    image: Array, mean: Sequence[float], std: Sequence[float], channels: int
) -> jax.Array:
    """Scales pixels to [0, 1], subtracts the mean and divides by the standard deviation.

    Args:
        image: uint8 [..., H, W, c] with c = `channels`, or c = 1, which is repeated: grey images travel
            to the device as one channel. Floating-point images are taken as already in [0, 1].
        mean: per channel, or one value for all, in units of [0, 1].
        std: likewise.
        channels: C.

    Returns:
        float32 [..., H, W, C].

    Raises:
        ValueError: the image has neither 1 nor `channels` channels, or mean or std a wrong length.
    """
    if image.shape[-1] not in (1, channels):
        raise ValueError(f"image has {image.shape[-1]} channels, expected 1 or {channels}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values, expected 1 or {channels}")
    pixels = jnp.asarray(image)
    scale = 255.0 if jnp.issubdtype(pixels.dtype, jnp.integer) else 1.0
    # One multiplication and one addition per pixel.
    factor = 1.0 / (scale * jnp.asarray(std, jnp.float32))
    offset = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    normalised = pixels.astype(jnp.float32) * factor + offset
    return jnp.broadcast_to(normalised, (*pixels.shape[:-1], channels))
