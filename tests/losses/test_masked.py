"""Without these, words that were not masked and patches that were visible could enter the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.masked import (
    all_position_labels,
    masked_image,
    masked_language,
    normalise_patches,
    patchify,
    unpatchify,
)

RNG = np.random.default_rng(0)
B, L, V, N, P = 3, 5, 7, 4, 12
LOGITS = RNG.normal(size=(B, L, V)).astype(np.float32)
LABELS = np.where(RNG.random((B, L)) < 0.5, RNG.integers(0, V, (B, L)), -100)
PIXELS = RNG.normal(size=(B, N, P)).astype(np.float32)
PREDICTED = RNG.normal(size=(B, N, P)).astype(np.float32)
REMOVED = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]], np.float32)


@pytest.mark.parametrize("mask", [[1, 1, 1], [1, 0, 1]])
def test_masked_language_loop(mask: list[int]) -> None:
    total = right = count = 0.0
    for b in range(B):
        for k in range(L):
            if LABELS[b, k] == -100 or not mask[b]:
                continue
            row = LOGITS[b, k].astype(np.float64)
            total += math.log(np.exp(row).sum()) - row[LABELS[b, k]]
            right += row.argmax() == LABELS[b, k]
            count += 1
    loss, accuracy = masked_language(LOGITS, LABELS, example_mask=np.array(mask, np.float32))
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(accuracy) == pytest.approx(right / count)


def test_masked_language_by_hand() -> None:
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 1] = [0, 10, 0, 0]
    loss, accuracy = masked_language(logits, np.array([[-100, 1, 2]]))
    wanted = (math.log(1 + 3 * math.exp(-10)) + math.log(4)) / 2
    assert float(loss) == pytest.approx(wanted, abs=1e-6)
    assert float(accuracy) == 0.5


def test_masked_language_ignores_unmasked_tokens() -> None:
    changed = np.where((LABELS == -100)[..., None], 99.0, LOGITS)
    a, b = (masked_language(v, LABELS)[0] for v in (LOGITS, changed))
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_labels_of_all_positions() -> None:
    labels = np.array([[-100, 8, -100, -100], [-100, -100, 6, -100]])
    masked = np.array([[2, 4, 7, 0], [2, 5, 4, 3]])
    original = np.array([[2, 8, 7, 0], [2, 5, 6, 3]])
    np.testing.assert_array_equal(all_position_labels(masked, labels), original)
    real = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(
        all_position_labels(masked, labels, real), np.where(real == 1, original, -100)
    )


def test_masked_image_ignores_visible_patches() -> None:
    changed = np.where(REMOVED[..., None] > 0, PREDICTED, 99.0)
    a, b = (masked_image(v, PIXELS, REMOVED) for v in (PREDICTED, changed))
    assert float(a) == pytest.approx(float(b), rel=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_image_loop(normalise: bool) -> None:
    mask = np.array([1, 0, 1], np.float32)
    errors = []
    for b in (0, 2):
        for n in np.flatnonzero(REMOVED[b]):
            target = PIXELS[b, n].astype(np.float64)
            if normalise:
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(np.mean((PREDICTED[b, n] - target) ** 2))
    got = masked_image(PREDICTED, PIXELS, REMOVED, normalise=normalise, example_mask=mask)
    assert float(got) == pytest.approx(np.mean(errors), rel=1e-5)


def test_masked_image_by_hand() -> None:
    target = np.array([[[0.0, 2.0], [5.0, 5.0]]], np.float32)
    # Patch 0 normalises to (-1, 1) / sqrt(2); patch 1 has no variance and becomes 0.
    loss = masked_image(np.zeros((1, 2, 2)), target, np.ones((1, 2), np.float32))
    assert float(loss) == pytest.approx(0.25, abs=1e-4)


def test_brightness_and_contrast_of_the_target_never_matter() -> None:
    a = masked_image(PREDICTED, PIXELS, REMOVED)
    b = masked_image(PREDICTED, PIXELS * 9 + 4, REMOVED)
    assert float(a) == pytest.approx(float(b), rel=1e-4)
    np.testing.assert_allclose(normalise_patches(PIXELS).mean(-1), 0, atol=1e-6)


def test_nothing_removed_or_masked_is_zero() -> None:
    assert float(masked_image(PREDICTED, PIXELS, np.zeros((B, N)))) == 0
    assert [float(v) for v in masked_language(LOGITS, np.full((B, L), -100))] == [0, 0]


def test_patches_are_row_column_channel() -> None:
    image = np.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    patches = np.asarray(patchify(image, 2))
    assert patches.shape == (1, 6, 8)
    # Second patch of the first row, second patch row below it.
    np.testing.assert_array_equal(patches[0, 1], image[0, 0:2, 2:4].ravel())
    np.testing.assert_array_equal(patches[0, 4], image[0, 2:4, 2:4].ravel())


def test_unpatchify_is_the_inverse() -> None:
    image = RNG.normal(size=(2, 8, 8, 3))
    np.testing.assert_allclose(unpatchify(patchify(image, 4), 4, 3), image, rtol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"patches of 5; change data\.image\.size"):
        patchify(np.zeros((1, 8, 8, 3)), 5)
    with pytest.raises(UserError, match="6 patches do not form a square"):
        unpatchify(np.zeros((1, 6, 12)), 2, 3)
