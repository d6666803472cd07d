"""Without these, training could mirror hearts, crop outside the image, or differ from evaluation."""

from __future__ import annotations

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.data import transforms
from medvlp_jax.data.device_transforms import normalise
from medvlp_jax.data.options import AugmentOptions, ImageOptions
from medvlp_jax.errors import UserError


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def left_right(height: int = 64, width: int = 64) -> np.ndarray:
    """Dark left, bright right."""
    image = np.full((height, width), 40, np.uint8)
    image[:, width // 2 :] = 200
    return image


def options(size: int = 32, channels: int = 1, **extra) -> ImageOptions:
    return ImageOptions(size=size, channels=channels, mean=(0.5,), std=(0.5,), **extra)


def test_decode_channels() -> None:
    colour = np.zeros((10, 12, 3), np.uint8)
    colour[:, :, 2] = 255  # OpenCV writes BGR: this is red
    assert transforms.decode(png(colour), 3)[0, 0].tolist() == [255, 0, 0]
    assert transforms.decode(png(colour), 1).shape == (10, 12, 1)
    grey = left_right()
    np.testing.assert_array_equal(transforms.decode(png(grey), 1)[:, :, 0], grey)
    np.testing.assert_array_equal(transforms.decode(png(grey), 3), np.repeat(grey[..., None], 3, 2))
    with pytest.raises(UserError, match="cannot be decoded"):
        transforms.decode(b"", 1)


def test_large_jpegs_are_decoded_reduced_but_not_below_what_is_needed() -> None:
    image = cv2.resize(left_right(), (700, 500))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    assert transforms.decode(data, 1, reduce_to=120).shape[:2] == (125, 175)
    assert transforms.decode(data, 3, reduce_to=200).shape[:2] == (250, 350)
    assert transforms.decode(data, 1, reduce_to=300).shape[:2] == (500, 700)
    assert transforms.decode(png(image), 1, reduce_to=50).shape[:2] == (500, 700)


def test_eval_crop_is_the_centre_and_pad_keeps_everything() -> None:
    image = np.zeros((60, 120), np.uint8)
    image[:, 30:90] = 100
    shown = transforms.eval_image(png(image), options(size=60))
    assert shown.shape == (60, 60, 1)
    assert (shown == 100).all()
    padded = transforms.eval_image(png(np.full((60, 120), 100, np.uint8)), options(60, fit="pad"))
    assert (padded[15:45] == 100).all()
    assert (padded[:15] == 0).all()
    assert (padded[45:] == 0).all()
    margin = transforms.eval_image(png(image), options(size=30, resize=60))
    assert margin.shape == (30, 30, 1)


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20), (31, 33), (7, 7)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("crop", ["none", "random", "random_resized"])
def test_any_aspect_gives_the_wanted_shape(height, width, fit, crop) -> None:
    data = png(np.full((height, width), 90, np.uint8))
    settings = options(fit=fit, augment=AugmentOptions(crop=crop, rotate=5, blur=(0.5, 1)))
    for channels in (1, 3):
        settings = options(channels=channels, fit=fit, augment=settings.augment)
        image = transforms.train_image(data, settings, np.random.default_rng(0))
        assert image.shape == (32, 32, channels)
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    data = png(np.random.default_rng(0).integers(0, 255, (80, 100), dtype=np.uint8))
    np.testing.assert_array_equal(
        transforms.train_image(data, options(), np.random.default_rng(1)),
        transforms.eval_image(data, options()),
    )


def test_no_augmentation_mirrors_unless_asked() -> None:
    everything = AugmentOptions(
        crop="random_resized", rotate=15, translate=0.1, zoom=(0.9, 1.1), brightness=0.3,
        contrast=0.3, blur=(0.1, 1.0),
    )  # fmt: skip
    for seed in range(50):
        rng = np.random.default_rng(seed)
        image = transforms.train_image(png(left_right()), options(augment=everything), rng)
        assert image[:, 22:].mean() > image[:, :10].mean()
    mirrored = [
        transforms.train_image(
            png(left_right()),
            options(augment=AugmentOptions(hflip=True)),
            np.random.default_rng(seed),
        )
        for seed in range(40)
    ]
    share = np.mean([m[:, :16].mean() > m[:, 16:].mean() for m in mirrored])
    assert 0.25 < share < 0.75


def test_random_resized_crop_stays_inside_and_within_its_range() -> None:
    marked = np.full((90, 120, 1), 77, np.uint8)
    augment = AugmentOptions(crop="random_resized", crop_scale=(0.2, 0.4))
    for seed in range(30):
        window = transforms.random_resized_crop(marked, 24, augment, np.random.default_rng(seed))
        assert (window == 77).all()
    # A column ramp: the window's width is the range of values it shows.
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))[:, :, None]
    widths = [
        int(np.ptp(transforms.random_resized_crop(ramp, 200, augment, np.random.default_rng(s))))
        for s in range(30)
    ]
    low, high = np.sqrt(0.2 * 3 / 4) * 200, np.sqrt(0.4 * 4 / 3) * 200
    assert low - 3 < min(widths)
    assert max(widths) < high + 3
    assert len(set(widths)) > 10


def test_brightness_and_contrast_have_their_meaning() -> None:
    image = left_right()[:, :, None]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gain = np.random.default_rng(seed).uniform(0.5, 1.5)
        brighter = transforms.jitter(image, AugmentOptions(brightness=0.5), rng)
        assert abs(int(brighter[0, 0, 0]) - 40 * gain) < 1
        changed = transforms.jitter(
            image, AugmentOptions(contrast=0.5), np.random.default_rng(seed)
        )
        assert abs(changed.mean() - image.mean()) < 1


def test_affine_keeps_the_centre() -> None:
    image = np.zeros((33, 33, 1), np.uint8)
    image[16, 16] = 255
    augment = AugmentOptions(rotate=90, zoom=(1.0, 1.0))
    for seed in range(10):
        moved = transforms.random_affine(image, augment, np.random.default_rng(seed))
        assert np.unravel_index(moved.argmax(), moved.shape)[:2] == (16, 16)


def test_normalise_by_hand() -> None:
    image = np.array([[[0, 128, 255]]], np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.1)
    expected = (np.array([0, 128, 255]) / 255 - mean) / std
    np.testing.assert_allclose(normalise(image, mean, std, 3)[0, 0], expected, rtol=1e-5, atol=1e-6)
    grey = normalise(np.full((2, 4, 4, 1), 255, np.uint8), mean, std, 3)
    assert grey.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(grey[0, 0, 0], (1 - np.array(mean)) / std, rtol=1e-5)
    assert grey.dtype == jnp.float32
    already = normalise(np.full((1, 2, 2, 1), 0.5, np.float32), (0.5,), (0.5,), 1)
    np.testing.assert_allclose(already, 0.0, atol=1e-7)


def test_normalise_refuses_wrong_channels() -> None:
    with pytest.raises(ValueError, match="2 channels, expected 1 or 3"):
        normalise(np.zeros((1, 4, 4, 2), np.uint8), (0.5,), (0.5,), 3)
    with pytest.raises(ValueError, match="mean has 2 values"):
        normalise(np.zeros((1, 4, 4, 3), np.uint8), (0.5, 0.5), (0.5,), 3)


@pytest.mark.parametrize("factor", [1.05, 1.2, 1.45, 1.5, 2, 4])
def test_shrinking_misses_no_thin_line(factor: float) -> None:
    """A bright line of one pixel keeps its share of the light wherever it lies."""
    size = 96
    shares = []
    for place in range(20, 40):
        image = np.zeros((size, size, 1), np.uint8)
        image[:, place] = 240
        small = transforms.resize(image, round(size / factor), round(size / factor))
        shares.append(float(small[small.shape[0] // 2].sum()) / (240 / factor))
    # Linear resizing weighs pixels unevenly, by less than their width.
    assert min(shares) > 0.4
    assert max(shares) < 1.6
    assert np.mean(shares) == pytest.approx(1, abs=0.06)
    if factor >= 1.5:
        assert max(shares) - min(shares) < 0.05
