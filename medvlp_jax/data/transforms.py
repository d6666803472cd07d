"""Host side of the image path: stored bytes to uint8 arrays, with random changes in training.

Everything stays uint8 until the device (`device_transforms.normalise`). No transform mirrors the image
unless `augment.hflip=True`: a mirrored chest contradicts every "left" and "right" of its report.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from medvlp_jax.data.options import AugmentOptions, ImageOptions
from medvlp_jax.errors import UserError

_AREA_FROM = 1.5


def single_threaded_opencv() -> None:
    """Turns off OpenCV's own threads: batches are already prepared in parallel.

    Called by whatever prepares batches, once per process; importing this module changes nothing.
    """
    cv2.setNumThreads(0)


def decode(data: bytes, channels: int, reduce_to: int | None = None) -> np.ndarray:
    """Decodes stored image bytes (PNG or JPEG).

    Args:
        data: file content.
        channels: 1 (grey) or 3 (RGB).
        reduce_to: a shorter side that is enough; large JPEGs are then decoded at 1/2, 1/4 or 1/8, which
            costs a fraction of the time.

    Returns:
        uint8 [H, W, C].

    Raises:
        UserError: not an image.
    """
    grey = channels == 1
    factor = _jpeg_reduction(data, reduce_to) if reduce_to else 1
    flag = {
        (True, 1): cv2.IMREAD_GRAYSCALE,
        (True, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
        (True, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
        (True, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
        (False, 1): cv2.IMREAD_COLOR,
        (False, 2): cv2.IMREAD_REDUCED_COLOR_2,
        (False, 4): cv2.IMREAD_REDUCED_COLOR_4,
        (False, 8): cv2.IMREAD_REDUCED_COLOR_8,
    }[grey, factor]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if image is None:
        raise UserError(
            f"a stored image cannot be decoded ({len(data)} bytes, starting with {data[:8]!r}); the "
            "dataset is damaged: run `data check`, then build it again"
        )
    if grey:
        return image[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_reduction(data: bytes, target: int) -> int:
    """Largest of 1, 2, 4, 8 that keeps the shorter side of a JPEG at `target` or more."""
    shorter = _jpeg_shorter_side(data)
    for factor in (8, 4, 2):
        if shorter // factor >= target:
            return factor
    return 1


def _jpeg_shorter_side(data: bytes) -> int:
    """Shorter side from the JPEG frame header; 0 for other formats."""
    if data[:2] != b"\xff\xd8":
        return 0
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return min(height, width)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [H, W, C]: area average when shrinking by 1.5 or more (no moire of ribs), else linear,
    which reads two pixels a side and so misses none, at a quarter of the time."""
    if image.shape[:2] == (height, width):
        return image
    down, across = image.shape[0] / height, image.shape[1] / width
    shrinks = min(down, across) > 1 and max(down, across) >= _AREA_FROM
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized if resized.ndim == 3 else resized[:, :, None]


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes so that the shorter side is `size`, keeping the aspect."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    return resize(image, max(size, round(height * scale)), max(size, round(width * scale)))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle size x size square out of an image at least that large."""
    top = (image.shape[0] - size) // 2
    left = (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def pad_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the longer side to `size` and centres the image on black."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    small = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    canvas = np.zeros((size, size, image.shape[2]), np.uint8)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def eval_image(data: bytes, options: ImageOptions) -> np.ndarray:
    """Stored bytes to the fixed view: shorter side resized and centre cropped, or padded.

    Returns:
        uint8 [size, size, channels].
    """
    if options.fit == "pad":
        # Without reduced decoding: its bound is on the shorter side, padding needs the longer one.
        return pad_to_square(decode(data, options.channels), options.size)
    shorter = options.resize or options.size
    image = decode(data, options.channels, reduce_to=shorter)
    return np.ascontiguousarray(centre_crop(resize_shorter(image, shorter), options.size))


def train_image(data: bytes, options: ImageOptions, rng: np.random.Generator) -> np.ndarray:
    """Stored bytes to a randomly changed view; without augmentation the same as `eval_image`.

    Args:
        data: PNG or JPEG bytes.
        options: image options.
        rng: all randomness comes from here.

    Returns:
        uint8 [size, size, channels].
    """
    augment = options.augment
    if augment.crop == "random_resized":
        # The smallest window still has about `size` pixels a side after reduced decoding.
        enough = math.ceil(1.2 * options.size / math.sqrt(augment.crop_scale[0]))
        image = decode(data, options.channels, reduce_to=enough)
        image = random_resized_crop(image, options.size, augment, rng)
    elif augment.crop == "random":
        shorter = options.resize or options.size
        image = decode(data, options.channels, reduce_to=shorter)
        image = random_crop(resize_shorter(image, shorter), options.size, rng)
    else:
        image = eval_image(data, options)
    image = random_affine(image, augment, rng)
    image = jitter(image, augment, rng)
    if augment.hflip and rng.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts a size x size window at a uniformly random place."""
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray, size: int, augment: AugmentOptions, rng: np.random.Generator
) -> np.ndarray:
    """Cuts a window of random area and aspect and resizes it to size x size.

    The aspect is drawn log-uniformly. A window that does not fit is drawn again, ten times at most,
    then the largest centred window with an allowed aspect is used.
    """
    height, width = image.shape[:2]
    low, high = math.log(augment.crop_ratio[0]), math.log(augment.crop_ratio[1])
    for _ in range(10):
        area = rng.uniform(*augment.crop_scale) * height * width
        ratio = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return resize(image[top : top + h, left : left + w], size, size)
    ratio = min(max(width / height, augment.crop_ratio[0]), augment.crop_ratio[1])
    h = min(height, max(1, round(width / ratio)))
    w = min(width, max(1, round(height * ratio)))
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size, size)


def random_affine(
    image: np.ndarray, augment: AugmentOptions, rng: np.random.Generator
) -> np.ndarray:
    """Rotates, shifts and zooms around the centre; what comes from outside is black."""
    if not augment.rotate and not augment.translate and augment.zoom == (1.0, 1.0):
        return image
    height, width = image.shape[:2]
    angle = rng.uniform(-augment.rotate, augment.rotate)
    zoom = rng.uniform(*augment.zoom)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom)
    matrix[0, 2] += rng.uniform(-augment.translate, augment.translate) * width
    matrix[1, 2] += rng.uniform(-augment.translate, augment.translate) * height
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return moved if moved.ndim == 3 else moved[:, :, None]


def jitter(image: np.ndarray, augment: AugmentOptions, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness and contrast (one lookup table) and blurs."""
    if augment.brightness or augment.contrast:
        gain = rng.uniform(1 - augment.brightness, 1 + augment.brightness)
        contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
        levels = np.arange(256, dtype=np.float32)
        mean = float(cv2.mean(image)[0]) if image.shape[2] == 1 else float(image.mean())
        table = np.clip(((levels - mean) * contrast + mean) * gain, 0, 255).round()
        image = table.astype(np.uint8)[image]
    if augment.blur[1] > 0:
        sigma = rng.uniform(*augment.blur)
        if sigma > 0:
            blurred = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma)
            image = blurred if blurred.ndim == 3 else blurred[:, :, None]
    return image
