"""Without these, boxes and masks could be read a pixel off, or as those of another finding."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medvlp_jax.data.regions import box_mask, finding_mask
from medvlp_jax.errors import UserError
from tfds_builders.regions import stored_mask


def png(mask: np.ndarray) -> bytes:
    return cv2.imencode(".png", mask)[1].tobytes()


def test_boxes() -> None:
    mask = box_mask(np.array([[0.0, 0.5, 0.5, 1.0], [0.75, 0.0, 1.0, 0.1]]), 4, 10)
    expected = np.zeros((4, 10), bool)
    expected[:2, 5:] = True
    expected[3, 0] = True
    np.testing.assert_array_equal(mask, expected)
    assert not box_mask(np.zeros((0, 4)), 4, 10).any()
    assert box_mask(np.array([[0.999, 0.999, 1.0, 1.0]]), 4, 10).sum() == 1
    assert box_mask(np.array([[0.0, 0.0, 1.0, 1.0]]), 3, 3).all()


def test_masks_of_16_bits_hold_one_finding_per_bit() -> None:
    stored = np.zeros((3, 4), np.uint16)
    stored[0, 0], stored[1, 1], stored[2, 3] = 1, 1 << 13 | 1 << 2, 1 << 15
    assert np.argwhere(finding_mask(png(stored), 0)).tolist() == [[0, 0]]
    assert np.argwhere(finding_mask(png(stored), 2)).tolist() == [[1, 1]]
    assert np.argwhere(finding_mask(png(stored), 13)).tolist() == [[1, 1]]
    assert np.argwhere(finding_mask(png(stored), 15)).tolist() == [[2, 3]]
    assert not finding_mask(png(stored), 7).any()


def test_masks_of_8_bits_are_of_the_one_finding() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 30:] = True
    np.testing.assert_array_equal(finding_mask(stored_mask(mask, 0), 0), mask)


@pytest.mark.parametrize("content", [b"", b"no image", png(np.zeros((2, 2, 3), np.uint8))])
def test_what_is_no_mask(content: bytes) -> None:
    with pytest.raises(UserError, match="data check"):
        finding_mask(content, 0)
