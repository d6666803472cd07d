"""Without these, a text that happens not to fit could be forced onto its image, or a missing one count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.mil_nce import mil_nce

B, P, D = 5, 3, 4
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(B, D)).astype(np.float32)
TEXT = RNG.normal(size=(B, P, D)).astype(np.float32)
PRESENT = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], np.float32)


def loop(present, real, scale: float, both: bool, released: bool) -> float:
    def e(i, j, p):
        return math.exp(scale * float(IMAGE[i] @ TEXT[j, p]))

    anchors = [i for i in real if present[i].any()]
    total = 0.0
    for i in anchors:
        positive = sum(e(i, i, p) for p in range(P) if present[i, p])
        bottom = positive
        for j in anchors:
            if j != i:
                bottom += sum(e(i, j, p) for p in range(P) if present[j, p])
                if both:
                    bottom += sum(e(j, i, p) for p in range(P) if present[i, p])
        if released:
            bottom += positive
        total -= math.log(positive / bottom) / len(anchors)
    return total


@pytest.mark.parametrize("present", [None, PRESENT])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 1]])
@pytest.mark.parametrize(
    ("both", "variant"), [(True, "paper"), (True, "released"), (False, "paper")]
)
def test_numpy_loop(present, mask, both, variant) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = mil_nce(
        IMAGE,
        TEXT,
        1.5,
        text_present=present,
        both_directions=both,
        variant=variant,
        example_mask=None if mask is None else np.array(mask, np.float32),
    )
    wanted = loop(
        np.ones((B, P)) if present is None else present, real, 1.5, both, variant == "released"
    )
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_one_text_per_row_is_info_nce() -> None:
    got = mil_nce(IMAGE, TEXT[:, :1], 2.0, both_directions=False)
    wanted = info_nce(IMAGE, TEXT[:, 0], 2.0, image_to_text_weight=1.0)
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)


def test_one_fitting_text_is_enough() -> None:
    image = np.eye(3, dtype=np.float32)
    fitting = np.stack([image, image[[1, 2, 0]] * 0], axis=1)
    loss = mil_nce(image, fitting, 50.0)
    assert float(loss) < 1e-6
