"""Without these, `equalise=histogram` could differ from MIMIC-CXR-JPG's pixels, or shift colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medvlp_jax.data import build, pipeline
from medvlp_jax.data.contrast import equalise
from medvlp_jax.data.images import decode_image, resize_for_storage
from medvlp_jax.errors import UserError
from tfds_builders.stored_images import stored_bytes


def dull(channels: int = 1) -> np.ndarray:
    """Grey values 100 ... 139 only, left to right; colour images are reddish."""
    grey = np.tile(np.arange(100, 140, dtype=np.uint8).repeat(2), (64, 1))
    if channels == 1:
        return grey[:, :, None]
    return np.stack([grey + 40, grey, grey - 10], axis=-1)


def test_none_changes_nothing() -> None:
    image = dull()
    assert equalise(image, "none") is image


def test_histogram_is_the_cumulative_distribution() -> None:
    """Of n pixels, those at or below a value v become 255 (n(v) - n(min)) / (n - n(min))."""
    image = np.random.default_rng(0).normal(90, 12, (50, 70, 1)).clip(0, 255).astype(np.uint8)
    counts = np.bincount(image.ravel(), minlength=256)
    below = counts.cumsum()
    first = counts[image.min()]
    table = np.round(255 * (below - first) / (image.size - first)).clip(0, 255)
    expected = table[image.ravel()].reshape(image.shape)
    assert np.abs(equalise(image, "histogram") - expected).max() <= 1


@pytest.mark.parametrize("method", ["histogram", "clahe"])
def test_contrast_grows_and_order_stays(method) -> None:
    image = dull()
    spread = equalise(image, method)
    assert spread.shape == image.shape
    assert spread.dtype == np.uint8
    assert spread.std() > (5 if method == "histogram" else 1.1) * image.std()
    if method == "histogram":
        assert (np.diff(spread[0, :, 0].astype(int)) >= 0).all()
        assert spread.min() == 0
        assert spread.max() == 255


def test_clahe_is_local_and_limited() -> None:
    """Faint texture beside a bright area grows, by a factor of 4 at most; the mean of both stays apart."""
    texture = np.random.default_rng(0).normal(0, 6, (128, 128))
    faint = cv2.GaussianBlur(texture, (0, 0), 2) * 3
    image = np.concatenate([faint + 40, faint + 190], axis=1).round().astype(np.uint8)[:, :, None]
    local = equalise(image, "clahe")
    for half in (slice(0, 128), slice(128, 256)):
        growth = local[:, half].std() / image[:, half].std()
        assert 1.3 < growth < 4
    assert local[:, 128:].mean() > local[:, :128].mean() + 100


@pytest.mark.parametrize("method", ["histogram", "clahe"])
def test_colours_keep_their_hue(method) -> None:
    image = dull(3)
    spread = equalise(image, method)
    middle = spread[:, 30:50].astype(int)
    assert (middle[..., 0] > middle[..., 1] + 20).all()
    before, after = (cv2.cvtColor(i, cv2.COLOR_RGB2YCrCb)[:, :, 1] for i in (image, spread))
    assert np.abs(before[:, 20:60].astype(int) - after[:, 20:60]).max() <= 4


def test_stored_images_are_equalised_before_they_shrink() -> None:
    stored = stored_bytes(dull(), size=32, quality=0, contrast="histogram")
    expected = resize_for_storage(equalise(dull(), "histogram"), 32)
    np.testing.assert_array_equal(decode_image(stored), expected)


def test_option_of_a_build(tmp_path) -> None:
    folder = tmp_path / "dull"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), dull()[:, :, 0])
    (folder / "metadata.csv").write_text("image,text,split\na.png,A dull image.,train\n")

    def stored(option: str) -> np.ndarray:
        options = {"equalise": option, "quality": "0", "name": option}
        build.build_dataset("image_text_folder", tmp_path, manual_dir=folder, options=options)
        source = pipeline.open_source(f"image_text_folder/{option}", "train", tmp_path)
        return decode_image(source[0]["image"])

    np.testing.assert_array_equal(stored("none"), dull())
    np.testing.assert_array_equal(stored("histogram"), equalise(dull(), "histogram"))
    np.testing.assert_array_equal(stored("clahe"), equalise(dull(), "clahe"))
    with pytest.raises(UserError, match=r"equalise='more': expected none, histogram or clahe"):
        stored("more")
