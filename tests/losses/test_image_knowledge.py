"""Without these, the two forms of KAD's contrast could be exchanged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvlp_jax.losses.image_knowledge import image_entity_contrast

B, D = 5, 4
IMAGE, ENTITY = np.random.default_rng(0).normal(size=(2, B, D)).astype(np.float32)


def loop(real, scale: float, cosine: bool) -> float:
    total = 0.0
    for a, b in ((IMAGE, ENTITY), (ENTITY, IMAGE)):
        for place, i in enumerate(real):
            scores = []
            for j in real:
                value = float(a[i] @ b[j])
                if cosine:
                    value /= float(np.linalg.norm(a[i]) * np.linalg.norm(b[j]))
                scores.append(scale * value)
            total += math.log(sum(math.exp(s) for s in scores)) - scores[place]
    return total / 2 / len(real)


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0]])
def test_numpy_loop(mask) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    rows = None if mask is None else np.array(mask, np.float32)
    released = image_entity_contrast(IMAGE, ENTITY, variant="released", example_mask=rows)
    assert float(released) == pytest.approx(loop(real, math.log(1 / 0.07), False), rel=1e-5)
    paper = image_entity_contrast(IMAGE, ENTITY, example_mask=rows)
    assert float(paper) == pytest.approx(loop(real, 1 / 0.07, True), rel=1e-5)
    learned = image_entity_contrast(IMAGE, ENTITY, logit_scale=3.0, example_mask=rows)
    assert float(learned) == pytest.approx(loop(real, 3.0, True), rel=1e-5)
