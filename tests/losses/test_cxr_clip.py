"""Without these, a pair of views or texts could be left out of CXR-CLIP's loss or weigh too much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.cxr_clip import cxr_clip, multi_view_contrast
from medvlp_jax.losses.info_nce import duplicate_negatives, info_nce

B, D = 5, 4
RNG = np.random.default_rng(0)
IMAGES = tuple(RNG.normal(size=(2, B, D)).astype(np.float32))
TEXTS = tuple(RNG.normal(size=(2, B, D)).astype(np.float32))


def one_way(a, b, real, scale) -> float:
    total = 0.0
    for i in real:
        scores = [math.exp(scale * float(a[i] @ b[j])) for j in real]
        total -= math.log(scores[real.index(i)] / sum(scores))
    return total / len(real)


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1]])
@pytest.mark.parametrize(("image_weight", "text_weight"), [(1.0, 0.5), (0.0, 2.0)])
def test_numpy_loop(mask, image_weight, text_weight) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]

    def both(a, b):
        return (one_way(a, b, real, 1.7) + one_way(b, a, real, 1.7)) / 2

    parts = {
        "image_text": sum(both(i, t) for i in IMAGES for t in TEXTS) / 4,
        "image_image": both(*IMAGES),
        "text_text": both(*TEXTS),
    }
    wanted = parts["image_text"] + image_weight * parts["image_image"]
    wanted += text_weight * parts["text_text"]
    got, got_parts = cxr_clip(
        IMAGES,
        TEXTS,
        1.7,
        image_weight=image_weight,
        text_weight=text_weight,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    assert float(got) == pytest.approx(wanted, rel=1e-5)
    for name, part in parts.items():
        assert float(got_parts[name]) == pytest.approx(part, rel=1e-5), name


def test_equal_views_are_info_nce() -> None:
    got = multi_view_contrast((IMAGES[0],) * 2, (TEXTS[0],) * 2, 2.0)
    assert float(got) == pytest.approx(float(info_nce(IMAGES[0], TEXTS[0], 2.0)), rel=1e-6)


def test_equal_texts_are_no_negatives() -> None:
    drop = duplicate_negatives(np.zeros(B, np.int32))
    got, parts = cxr_clip(IMAGES, TEXTS, 3.0, drop_negatives=drop)
    assert float(got) == pytest.approx(0, abs=1e-6)
    assert all(float(part) == pytest.approx(0, abs=1e-6) for part in parts.values())
