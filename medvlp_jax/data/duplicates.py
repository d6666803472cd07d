"""Copies of images, also recompressed or resized ones: a perceptual hash and the search for near ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
import scipy.sparse

from medvlp_jax.data.transforms import decode

HASH_BITS = 256
MAX_DISTANCE = 15
"""Bits by which copies may differ. Measured on 1,083 radiological images: copies with JPEG quality 50 to 95,
0.5 to 1.3 times the size or 0.8 times the contrast differ by 13 bits at most, neighbouring CT slices by
41, the most alike of 1.1 million pairs of small chest radiographs by 55 at least."""

_SIDE = 64  # of the reduced image
_DECODED = 256  # shorter side that is decoded at least; at 64 the cut last blocks of a JPEG shift the waves
_BLOCK = 16  # frequencies a side; _BLOCK * _BLOCK = HASH_BITS
_SEGMENTS = MAX_DISTANCE + 1
_NOISE = 4.0  # waves weaker than JPEG's rounding count as absent, or smooth images would be hashed by noise
_FLAT = 1.0  # standard deviation of grey values below which an image has no structure
# Bits that are almost always equal (low frequencies: all chests are alike) are spread over the segments.
_ORDER = np.argsort(
    np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel() % _BLOCK, kind="stable"
)


def image_hash(data: bytes) -> bytes:
    """Perceptual hash of an encoded image: 256 bits, of which copies differ in `MAX_DISTANCE` at most.

    Which of the lowest 16 x 16 waves of the discrete cosine transform of a 64 x 64 reduction are positive, so
    brightness and contrast hardly matter (after Zauner, Implementation and Benchmarking of Perceptual
    Image Hash Functions, 2010, with a fixed threshold in place of the median). An image without structure is
    hashed by its mean grey value: black equals black, but not white.

    Args:
        data: content of a PNG or JPEG file.

    Returns:
        32 bytes.

    Raises:
        UserError: not an image.
    """
    grey = decode(data, 1, reduce_to=_DECODED)[:, :, 0]
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _FLAT:
        return hashlib.sha256(b"flat %d" % round(float(small.mean()))).digest()
    waves = cv2.dct(small)[:_BLOCK, :_BLOCK].ravel()
    waves[0] = 0  # the mean
    return np.packbits(waves[_ORDER] > _NOISE).tobytes()


def duplicate_groups(hashes: np.ndarray) -> np.ndarray:
    """Which images are copies of each other.

    Two images whose hashes differ by `MAX_DISTANCE` bits or fewer are in one group; no such pair is missed.

    Args:
        hashes: uint8 [n, 32].

    Returns:
        int [n]: number of the group; images without a copy have a group of their own.
    """
    if not len(hashes):
        return np.zeros(0, np.int64)
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *_near_pairs(unique)])
    links = scipy.sparse.coo_array(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(unique), len(unique))
    )
    _, group = scipy.sparse.csgraph.connected_components(links, directed=False)
    return group[inverse.reshape(-1)]


def _near_pairs(unique: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs [m, 2] of near ones among distinct hashes uint8 [n, 32].

    Of 16 segments of 16 bits, two hashes that differ in 15 bits have at least one in common. So it is
    enough to compare hashes that share a segment: neighbours in the order of that segment.
    """
    words = np.asfortranarray(np.ascontiguousarray(unique).view(np.uint64))
    keys = np.ascontiguousarray(unique).view(np.uint16)
    assert keys.shape[1] == _SEGMENTS
    for segment in range(_SEGMENTS):
        order = np.argsort(keys[:, segment], kind="stable")
        key = keys[order, segment]
        first = np.arange(len(order))
        for apart in range(1, len(order)):
            first = first[first + apart < len(order)]
            first = first[key[first] == key[first + apart]]
            if not len(first):
                break
            near = first[_are_near(words, order[first], order[first + apart])]
            if len(near):
                yield np.stack([order[near], order[near + apart]], axis=1)


def _are_near(words: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether rows a [m] and b [m] of uint64 [n, 4] differ in few bits; word by word, because most pairs are
    too far apart in the first."""
    left = np.arange(len(a))
    total = np.zeros(len(a), np.uint8)
    for column in words.T:
        total = total + np.bitwise_count(column[a[left]] ^ column[b[left]])
        kept = total <= MAX_DISTANCE
        left, total = left[kept], total[kept]
    near = np.zeros(len(a), bool)
    near[left] = True
    return near
