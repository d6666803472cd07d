"""Without it masks could be transposed or shifted, and boxes lie elsewhere than they were drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medvlp_jax.data.images import ImageError
from tfds_builders.regions import decode_run_lengths, relative_boxes, stored_mask


def encode(mask: np.ndarray) -> str:
    """Run lengths of a mask by a loop over its pixels, column by column."""
    runs, skipped, length = [], 0, 0
    for pixel in mask.T.ravel().tolist():
        if pixel:
            length += 1
        else:
            if length:
                runs += [skipped, length]
                skipped = length = 0
            skipped += 1
    if length:
        runs += [skipped, length]
    return " ".join(map(str, runs))


def test_run_lengths_go_down_the_columns_and_starts_are_relative() -> None:
    expected = np.zeros((4, 3), bool)
    expected[1:3, 0] = True
    expected[3, 1] = True
    np.testing.assert_array_equal(decode_run_lengths("1 2 4 1", 4, 3), expected)
    mask = np.random.default_rng(0).random((17, 9)) > 0.6
    np.testing.assert_array_equal(decode_run_lengths(encode(mask), 17, 9), mask)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 2 3", "not pairs"),
        ("1 x", "not whole numbers"),
        ("1 -2", "not pairs of counts"),
        ("10 3", "cover 13 pixels of 3 x 4"),
    ],
)
def test_damaged_run_lengths(runs, message) -> None:
    with pytest.raises(ImageError, match=message):
        decode_run_lengths(runs, 4, 3)


def test_boxes_are_cut_at_the_border_and_refused_outside() -> None:
    (box,) = relative_boxes([(10, 20, 30, 100, 2)], height=80, width=40)
    np.testing.assert_allclose(box["bbox"], [0.25, 0.25, 1.0, 1.0])
    assert box["label"] == 2
    with pytest.raises(ImageError, match="box x=50"):
        relative_boxes([(50, 0, 5, 5, 0)], height=80, width=40)
    with pytest.raises(ImageError, match="h=0"):
        relative_boxes([(5, 5, 5, 0, 0)], height=80, width=40)


def test_mask_is_resized_with_its_image() -> None:
    mask = np.zeros((80, 40), bool)
    mask[:40] = True
    pixels = cv2.imdecode(np.frombuffer(stored_mask(mask, 20), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (40, 20)
    assert (pixels[:20] == 255).all()
    assert (pixels[20:] == 0).all()
