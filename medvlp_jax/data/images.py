"""Any image file to uint8 pixels, or the reason why not; and the form in which datasets store images."""

from __future__ import annotations

import gzip
import io
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_000_000
"""Largest image: just below the size at which Pillow suspects a decompression bomb."""
MIN_SIDE = 16
"""Smallest side in pixels; below it a file is an icon or a defect."""

_GREY_TOLERANCE = 3
_PERCENTILES = (0.1, 99.9)
_TIFF_PHOTOMETRIC = 262
_16_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


class ImageError(Exception):
    """A file that cannot become an image; `str(error)` is the reason in a few words."""


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    frame: Literal["first", "middle"] = "middle",
) -> np.ndarray:
    """Decodes PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM content; the file's name plays no role.

    Transparent pixels are composited on black, the background of radiographs. The EXIF orientation is
    applied. More than 8 bits are scaled to 8 between robust percentiles (DICOM: by its own window).
    Colour images whose channels agree become grey. Animated GIFs and multi-page TIFFs give their first
    frame; later pages are often thumbnails.

    Args:
        data: file content.
        max_pixels: larger images are refused before they are decoded.
        frame: which frame of a multi-frame DICOM; "middle" is number n // 2 of 0 ... n - 1.

    Returns:
        uint8 [H, W, 1] (grey) or [H, W, 3] (RGB).

    Raises:
        ImageError: with the reason.
    """
    _refuse_non_images(data)
    if data[:1] in (b" ", b"\0") and data[1:3] == b"\x08\x00" and is_dicom(data[1:]):
        data = data[1:]  # a padding byte that was left when somebody cut off the header
    if is_dicom(data):
        from medvlp_jax.data.dicom import decode_dicom  # loads pydicom only when there is a DICOM

        image = decode_dicom(data, max_pixels=max_pixels, frame=frame)
    else:
        image = _decode_with_pillow(data, max_pixels)
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"too small: {width} x {height} pixels, at least {MIN_SIDE} a side needed")
    return drop_colour_if_grey(image)


def is_dicom(data: bytes) -> bool:
    """Whether the content is DICOM: its magic, or a data set that starts without one (group 8)."""
    if data[128:132] == b"DICM":
        return True
    # Explicit value representation: two letters; implicit: the length of the first, short element.
    explicit, length = data[4:6].isalpha(), int.from_bytes(data[4:8], "little")
    return data[:2] == b"\x08\x00" and (explicit or 0 < length < 256)


def _refuse_non_images(data: bytes) -> None:
    """Names the usual things that are not images but carry an image's file name.

    Raises:
        ImageError: content of a known other kind.
    """
    if not data:
        raise ImageError("empty file (0 bytes)")
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ImageError("Git LFS pointer, not the image itself: run `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise ImageError("HTML or XML page saved as an image: download the file again")
    if _is_nifti(data):
        raise ImageError(
            "NIfTI volume: export the slices you need as PNG, or build whole volumes with the dataset "
            "volume_folder"
        )
    if data[:4] == b"PK\x03\x04":
        raise ImageError("ZIP archive, not an image: unpack it")


def _is_nifti(data: bytes) -> bool:
    """NIfTI-1 or NIfTI-2 content, plain or gzip-compressed."""
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(352)
        except (OSError, EOFError):
            return False
    return data[344:348] in (b"n+1\x00", b"ni1\x00") or data[4:8] in (b"n+2\x00", b"ni2\x00")


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    """Decodes everything but DICOM.

    Raises:
        ImageError: damaged, unsupported or too large.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise ImageError(_too_large(image.width, image.height, max_pixels))
        if _is_deep_colour_png(data):
            return _decode_with_opencv(data, max_pixels)  # Pillow would cut off the lower 8 bits
        image.load()
        array = _pillow_to_array(ImageOps.exif_transpose(image))
        return 255 - array if _is_white_zero(image) else array
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"too large: more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        # Pillow lacks a few kinds that OpenCV reads, such as 16-bit colour TIFF.
        return _decode_with_opencv(data, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # damaged files raise many kinds
        if "truncated" in str(error) or isinstance(error, EOFError):
            raise ImageError(f"truncated file: {error}") from error
        raise ImageError(f"damaged or unsupported image: {error}") from error


def _is_deep_colour_png(data: bytes) -> bool:
    """A PNG of 16 bits with colour or transparency."""
    return data[:4] == b"\x89PNG" and data[24:25] == b"\x10" and data[25:26] != b"\0"


def _is_white_zero(image: Image.Image) -> bool:
    """A TIFF in which 0 is white, as film digitisers write; Pillow minds that up to 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return image.mode in _16_BIT_MODES and tags.get(_TIFF_PHOTOMETRIC) == 0


def _too_large(width: int, height: int, max_pixels: int) -> str:
    return f"too large: {width} x {height} pixels, the limit is {max_pixels}"


def _decode_with_opencv(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a header that promises more pixels than OpenCV accepts
        image = None
    if image is None:
        raise ImageError(f"not an image in a known format (starts with {data[:4]!r})")
    if image.shape[0] * image.shape[1] > max_pixels:
        raise ImageError(_too_large(image.shape[1], image.shape[0], max_pixels))
    if image.ndim == 3:
        if image.shape[2] == 4 and image.dtype == np.uint16:
            image = image[:, :, :3] * (image[:, :, 3:] / np.float32(65_535))
        image = image[:, :, 2::-1]
    return to_uint8(image)


def _pillow_to_array(image: Image.Image) -> np.ndarray:
    """Pixels of any Pillow mode: uint8 [H, W, 1 or 3]."""
    mode = image.mode
    if mode in _16_BIT_MODES:
        return to_uint8(np.asarray(image))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba).convert("RGB")
    elif mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Scales pixels of any type to uint8 [H, W, 1 or 3].

    8-bit pixels stay. Two-valued ones become 0 and 255. Others are scaled linearly between the 0.1 and
    99.9 percentiles over all channels, so that a few hot pixels or a burnt-in marker do not darken the
    rest; NaN becomes black.

    Args:
        array: [H, W] or [H, W, c].
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float32)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    # A sample of the pixels is enough for percentiles and much faster on large images.
    low, high = np.percentile(finite[:: max(1, finite.size // 1_000_000)], _PERCENTILES)
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return scale_to_uint8(values, float(low), float(high))


def scale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps [low, high] to 0 ... 255 and clips; NaN becomes 0."""
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0).clip(0, 255).round().astype(np.uint8)


def drop_colour_if_grey(image: np.ndarray) -> np.ndarray:
    """One channel of an RGB image whose channels agree (within rounding of JPEG), else the image."""
    if image.shape[2] != 3:
        return image
    red, green, blue = (image[:, :, i] for i in range(3))
    if (
        max(int(cv2.absdiff(red, green).max()), int(cv2.absdiff(green, blue).max()))
        > _GREY_TOLERANCE
    ):
        return image
    return green[:, :, None].copy()


def resize_for_storage(image: np.ndarray, size: int) -> np.ndarray:
    """Shrinks so that the shorter side is `size`, by area averaging; never enlarges.

    Args:
        image: uint8 [H, W, C].
        size: pixels; 0 keeps the original size.

    Returns:
        uint8 [h, w, C].
    """
    height, width = image.shape[:2]
    if not size or min(height, width) <= size:
        return image
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    small = cv2.resize(image, target, interpolation=cv2.INTER_AREA)
    return small if small.ndim == 3 else small[:, :, None]


def encode_for_storage(
    image: np.ndarray,
    image_format: Literal["jpeg", "png", "plain_png"] = "jpeg",
    quality: int = 95,
) -> bytes:
    """File content of an image as datasets store it.

    Grey radiographs of 256 x 256 pixels: JPEG 95 has 16 kB and decodes in 170 us, PNG 28 kB and 610 us, PNG
    without compression 66 kB (49 in a record file, which compresses) and 55 us.

    Args:
        image: uint8 [H, W, 1] or RGB [H, W, 3].
        image_format: PNG is lossless; "plain_png" is PNG without filters and compression.
        quality: of JPEG.
    """
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if image_format == "plain_png":
        plain = [
            cv2.IMWRITE_PNG_COMPRESSION,
            0,
            cv2.IMWRITE_PNG_FILTER,
            cv2.IMWRITE_PNG_FILTER_NONE,
        ]
        written, data = cv2.imencode(".png", image, plain)
    elif image_format == "png":
        written, data = cv2.imencode(".png", image)
    else:
        written, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise ImageError(f"cannot be written as {image_format}: shape {image.shape}")
    return data.tobytes()
