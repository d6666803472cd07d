"""Without these, a student could be taught along one side of the similarities only, or teach its teacher."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.distillation import similarity_distillation

B = 5
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, B, B)).astype(np.float32) * 2


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def loop(student, teacher, real) -> float:
    total = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        for i in real:
            p = softmax([float(t[i, j]) for j in real])
            q = softmax([float(s[i, j]) for j in real])
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / 2 / len(real)


@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0]])
def test_numpy_loop(mask) -> None:
    real = [i for i in range(B) if mask is None or mask[i]]
    got = similarity_distillation(
        STUDENT, TEACHER, example_mask=None if mask is None else np.array(mask, np.float32)
    )
    assert float(got) == pytest.approx(loop(STUDENT, TEACHER, real), rel=1e-5)


def test_agreement_is_zero_and_the_teacher_learns_nothing() -> None:
    assert float(similarity_distillation(TEACHER, TEACHER)) == pytest.approx(0, abs=1e-6)
    grads = jax.grad(similarity_distillation, argnums=(0, 1))(
        jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    )
    assert np.abs(grads[0]).max() > 1e-3
    np.testing.assert_array_equal(grads[1], 0)
