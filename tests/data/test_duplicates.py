"""Without these, recompressed copies in training and test would pass as different images."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from medvlp_jax.data.duplicates import MAX_DISTANCE, duplicate_groups, image_hash
from medvlp_jax.data.images import decode_image, resize_for_storage


def smooth_noise(seed: int, sigma: float = 6) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(300, 260)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def copies(image: np.ndarray) -> dict[str, bytes]:
    small = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    large = cv2.resize(image, None, fx=1.3, fy=1.3, interpolation=cv2.INTER_CUBIC)
    return {
        "png": cv2.imencode(".png", image)[1].tobytes(),
        "colour": cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))[1].tobytes(),
        "jpeg 60": jpeg(image, 60),
        "smaller": jpeg(small, 85),
        "larger": jpeg(large, 75),
        "contrast": jpeg((image * 0.85 + 12).astype(np.uint8)),
    }


@pytest.mark.parametrize("sigma", [3, 6, 15])
def test_copies_are_near_and_other_images_are_not(sigma: float) -> None:
    images = [smooth_noise(seed, sigma) for seed in range(12)]
    hashes = [image_hash(jpeg(image)) for image in images]
    for image, own in zip(images, hashes, strict=True):
        for kind, data in copies(image).items():
            assert distance(own, image_hash(data)) <= MAX_DISTANCE, kind
    others = [distance(a, b) for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(others) > MAX_DISTANCE


def test_turned_mirrored_and_inverted_images_are_others() -> None:
    image = smooth_noise(3)
    own = image_hash(jpeg(image))
    for other in (image[::-1], image[:, ::-1], np.rot90(image), 255 - image):
        assert distance(own, image_hash(jpeg(np.ascontiguousarray(other)))) > 2 * MAX_DISTANCE


def test_flat_images_equal_those_of_their_grey_only() -> None:
    def flat(value: int, side: int = 40) -> bytes:
        return image_hash(jpeg(np.full((side, side), value, np.uint8)))

    assert flat(0) == flat(0, side=90)
    assert distance(flat(0), flat(255)) > MAX_DISTANCE
    assert distance(flat(100), flat(106)) > MAX_DISTANCE


def test_real_images(data_dir) -> None:
    """Copies stay below the bound, which is far below the distance of the most alike others."""
    files = sorted((data_dir / "roco_test" / "images").iterdir())[:60]
    hashes = []
    for file in files:
        image = resize_for_storage(decode_image(file.read_bytes()), 256)
        bgr = np.ascontiguousarray(image[:, :, ::-1]) if image.shape[2] == 3 else image
        own = image_hash(cv2.imencode(".png", bgr)[1].tobytes())
        hashes.append(own)
        smaller = cv2.resize(bgr, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
        for data in (jpeg(bgr, 75), jpeg(smaller, 90)):
            assert distance(own, image_hash(data)) <= MAX_DISTANCE, file.name
    others = [distance(a, b) for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(others) > 2 * MAX_DISTANCE


def planted(number: int, pairs: int, seed: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Random hashes, of which some are others with up to `MAX_DISTANCE` bits changed."""
    rng = np.random.default_rng(seed)
    # Uneven bits make crowded segments, as the low frequencies of chests do.
    bits = rng.random((number, 256)) < rng.choice([0.2, 0.5, 0.8], size=256)
    chosen = rng.permutation(number)[: 2 * pairs].reshape(pairs, 2)
    for first, second in chosen:
        bits[second] = bits[first]
        bits[second, rng.choice(256, rng.integers(0, MAX_DISTANCE + 1), replace=False)] ^= True
    return np.packbits(bits, axis=1), [(int(a), int(b)) for a, b in chosen]


def test_groups_equal_a_comparison_of_all_pairs() -> None:
    hashes, _ = planted(600, 60)
    hashes[5] = hashes[6] = hashes[7]
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=-1) <= MAX_DISTANCE
    reached = apart
    for _ in range(4):  # through others
        reached = reached @ reached
    groups = duplicate_groups(hashes)
    np.testing.assert_array_equal(groups[:, None] == groups[None], reached)


def test_distance_of_one_bit_more_is_another_image() -> None:
    bits = np.random.default_rng(0).random(256) < 0.5
    near, far = bits.copy(), bits.copy()
    near[::17] ^= True  # 16 positions: one in each segment
    near[0] ^= True
    far[::17] ^= True
    assert (near != bits).sum() == MAX_DISTANCE
    first, second, third = duplicate_groups(np.packbits([bits, near, far], axis=1))[:3]
    assert first == second
    assert third == second  # by way of `near`, one bit away
    first, third = duplicate_groups(np.packbits([bits, far], axis=1))
    assert first != third


def test_no_hashes_and_one_hash() -> None:
    assert duplicate_groups(np.zeros((0, 32), np.uint8)).shape == (0,)
    assert duplicate_groups(np.zeros((1, 32), np.uint8)).tolist() == [0]


def test_100_000_hashes_take_seconds() -> None:
    """All pairs would be 5e9 comparisons."""
    hashes, pairs = planted(100_000, 1000)
    start = time.process_time()
    groups = duplicate_groups(hashes)
    assert time.process_time() - start < 20
    assert all(groups[a] == groups[b] for a, b in pairs)
