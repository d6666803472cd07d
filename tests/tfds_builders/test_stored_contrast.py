"""Without it `--option equalise=...` could be accepted for official datasets and change nothing."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import numpy as np
import pytest

from medvlp_jax.data.contrast import equalise
from medvlp_jax.data.images import decode_image
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import ManualBuilder, ManualConfig, parse_config


def stored(folder: pathlib.Path, **options: str) -> np.ndarray:
    """Pixels that a builder stores of a dull image."""
    config = parse_config(ManualConfig, folder, {"size": "0", "quality": "0", **options})
    builder: Any = types.SimpleNamespace(_settings=config, read_pixels=lambda *_: dull())
    media, size = ManualBuilder.read_media(builder, folder, record=None)  # pyright: ignore
    assert size == (48, 40)
    return decode_image(media["image"].getvalue())


def dull() -> np.ndarray:
    return np.tile(np.arange(100, 140, dtype=np.uint8), (48, 1))[:, :, None]


@pytest.mark.parametrize("method", ["none", "histogram", "clahe"])
def test_option_of_the_official_datasets(tmp_path, method) -> None:
    np.testing.assert_array_equal(stored(tmp_path, equalise=method), equalise(dull(), method))
    np.testing.assert_array_equal(stored(tmp_path), dull())


def test_other_values_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="option equalise='more': expected none or histogram"):
        stored(tmp_path, equalise="more")
