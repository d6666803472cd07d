"""Without these, a broken or unusual file would enter a dataset as noise, or stop a build unexplained."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from medvlp_jax.data import images
from medvlp_jax.data.images import ImageError, decode_image


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(dtype=np.uint8, scale: int = 1) -> np.ndarray:
    return (np.add.outer(np.arange(40), np.arange(60)) * scale).astype(dtype)


def test_equal_content_in_different_kinds_of_file_looks_equal(data_dir) -> None:
    folder = data_dir / "odd"
    ct = decode_image((folder / "dicom/CT_small.dcm").read_bytes()).astype(int)
    for name in ("derived/ct_16bit.png", "derived/ct_float32.tif"):
        other = decode_image((folder / name).read_bytes()).astype(int)
        assert np.abs(ct - other).mean() < 1
    upright = decode_image((folder / "derived/cmyk.jpg").read_bytes()).astype(int)
    turned = decode_image((folder / "derived/exif_orientation6.jpg").read_bytes()).astype(int)
    palette = decode_image((folder / "derived/palette.png").read_bytes()).astype(int)
    assert np.abs(palette - upright).mean() < 12
    # Orientation 6: the stored pixels are shown turned clockwise.
    assert np.abs(np.rot90(turned, 1) - upright).mean() < 12


def test_transparency_is_black() -> None:
    rgba = np.full((20, 20, 4), 200, np.uint8)
    rgba[:, :10, 3] = 0
    rgba[:, 10:, 3] = 255
    image = decode_image(encoded(rgba))
    assert image.shape == (20, 20, 1)
    assert image[0, 0, 0] == 0
    assert image[0, 19, 0] == 200
    grey_alpha = np.stack([np.full((20, 20), 200), np.full((20, 20), 0)], axis=-1).astype(np.uint8)
    assert decode_image(encoded(grey_alpha)).max() == 0


def test_16_bits_are_scaled_robustly_and_8_bits_are_left_alone() -> None:
    image = ramp(np.uint16, scale=100)
    image[0, 0] = 65_535  # one hot pixel must not darken the rest
    shown = decode_image(encoded(image))
    assert shown.shape == (40, 60, 1)
    assert shown[-1, -1, 0] == 255
    assert shown[20, 30, 0] == pytest.approx(255 * 50 / 98, abs=4)
    np.testing.assert_array_equal(decode_image(encoded(ramp()))[:, :, 0], ramp())


def test_scaling_of_nan_constants_and_booleans() -> None:
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = np.nan
    scaled = images.to_uint8(values)
    assert scaled[0, 0, 0] == 0
    assert scaled[-1, -1, 0] == 255
    assert images.to_uint8(np.full((4, 4), np.nan)).max() == 0
    assert images.to_uint8(np.full((4, 4), 7.0)).max() == 0
    assert set(images.to_uint8(np.eye(4, dtype=bool)).ravel().tolist()) == {0, 255}


def test_16_bit_colour_tiff() -> None:
    colour = np.zeros((20, 30, 3), np.uint16)
    colour[:, :15, 0] = 60_000  # OpenCV writes channel 0 as blue
    written, data = cv2.imencode(".tiff", colour)
    assert written
    image = decode_image(data.tobytes())
    assert image.shape == (20, 30, 3)
    assert image[0, 0].tolist()[:2] == [0, 0]
    assert image[0, 0, 2] > 230


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_colour_png_keeps_its_lower_bits(alpha: bool) -> None:
    """Values below 256 of 65,535 would all be black if the upper byte alone were read."""
    colour = np.stack([ramp(np.uint16), ramp(np.uint16), 98 - ramp(np.uint16)], axis=-1)
    if alpha:
        half = np.full((40, 60, 1), 65_535, np.uint16)
        half[:, :30] = 0
        colour = np.concatenate([colour, half], axis=-1)
    written, data = cv2.imencode(".png", colour)
    assert written
    image = decode_image(data.tobytes())
    assert image.shape == (40, 60, 3)
    assert image[-1, -1].tolist() == [0, 255, 255]  # OpenCV writes blue first
    assert image[0, 0, 0] == (0 if alpha else 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_in_which_0_is_white(dtype) -> None:
    plain = encoded(ramp(dtype), "TIFF")
    directory = struct.unpack("<I", plain[4:8])[0]
    turned = bytearray(plain)
    for place in range(directory + 2, directory + 200, 12):
        if turned[place : place + 2] == struct.pack("<H", 262):  # photometric interpretation
            turned[place + 8 : place + 10] = struct.pack("<H", 0)
            break
    np.testing.assert_array_equal(decode_image(bytes(turned)), 255 - decode_image(plain))


def test_limits() -> None:
    with pytest.raises(ImageError, match="too large: 60 x 40 pixels"):
        decode_image(encoded(ramp()), max_pixels=1000)
    with pytest.raises(ImageError, match="too small: 10 x 5"):
        decode_image(encoded(np.zeros((5, 10), np.uint8)))
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    header += struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0) + b"\0\0\0\0"
    with pytest.raises(ImageError):
        decode_image(header)


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_cut_files_have_a_reason(cut: int) -> None:
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF"):
        data = encoded(ramp(), kind)
        with pytest.raises(ImageError):
            decode_image(data[: min(cut, len(data) // 2)])


def test_storage_size_and_format() -> None:
    image = np.repeat(ramp()[:, :, None], 3, axis=2)
    image[:, :, 0] = 255 - image[:, :, 0]
    small = images.resize_for_storage(image, 20)
    assert small.shape == (20, 30, 3)
    assert images.resize_for_storage(image, 0) is image
    assert images.resize_for_storage(image, 100) is image  # never enlarged
    assert images.resize_for_storage(image[:, :, :1], 20).shape == (20, 30, 1)
    png = decode_image(images.encode_for_storage(small, "png"))
    np.testing.assert_array_equal(png, small)
    plain = images.encode_for_storage(small, "plain_png")
    np.testing.assert_array_equal(decode_image(plain), small)
    assert small.size < len(plain) < small.size + 200  # nothing compressed
    jpeg = images.encode_for_storage(small, quality=95)
    assert jpeg[:2] == b"\xff\xd8"
    assert np.abs(decode_image(jpeg).astype(int) - small).mean() < 6
