"""Without these, a queue could lose keys or keep padding, or pseudo-targets leak into the gradient."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.momentum_contrast import (
    enqueue,
    follow,
    momentum_contrast,
    queue_contrast,
)

B, Q, D = 4, 6, 5
RNG = np.random.default_rng(0)
EMBEDS = RNG.normal(size=(4, B, D)).astype(np.float32)
EMBEDS /= np.linalg.norm(EMBEDS, axis=-1, keepdims=True)
QUEUES = RNG.normal(size=(2, Q, D)).astype(np.float32)
QUEUES /= np.linalg.norm(QUEUES, axis=-1, keepdims=True)
IMAGE, TEXT, IMAGE_M, TEXT_M = EMBEDS
ROW_MASK, QUEUE_MASK = np.array([1, 0, 1, 1], np.float32), np.array([1, 1, 0, 1, 0, 0], np.float32)


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def one_way(anchors, teachers, keys, queue, real, filled, scale, alpha, others=True) -> float:
    total = 0.0
    for i in real:
        candidates = [(j == i, keys[j]) for j in real if others or j == i]
        candidates += [(False, queue[q]) for q in filled]
        student = softmax([scale * float(anchors[i] @ c) for _, c in candidates])
        teacher = softmax([scale * float(teachers[i] @ c) for _, c in candidates])
        for (own, _), p, t in zip(candidates, student, teacher, strict=True):
            total -= ((1 - alpha) * own + alpha * t) * math.log(p)
    return total / len(real)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("alpha", "weight"), [(0.4, 0.0), (0.4, 0.5), (0.0, 1.0)])
def test_numpy_loop(masked, alpha, weight) -> None:
    real = [i for i in range(B) if not masked or ROW_MASK[i]]
    filled = [q for q in range(Q) if not masked or QUEUE_MASK[q]]
    arrays = {
        "image_to_text": (IMAGE, IMAGE_M, TEXT_M, QUEUES[1], alpha, 1.0),
        "text_to_image": (TEXT, TEXT_M, IMAGE_M, QUEUES[0], alpha, 1.0),
        "image_to_image": (IMAGE, IMAGE_M, IMAGE_M, QUEUES[0], 0.3, weight),
        "text_to_text": (TEXT, TEXT_M, TEXT_M, QUEUES[1], 0.3, weight),
    }
    got, parts = momentum_contrast(
        (IMAGE, TEXT),
        (IMAGE_M, TEXT_M),
        (QUEUES[0], QUEUES[1]),
        3.0,
        alpha=alpha,
        unimodal_weight=weight,
        unimodal_alpha=0.3,
        queue_mask=QUEUE_MASK if masked else None,
        example_mask=ROW_MASK if masked else None,
    )
    wanted = 0.0
    for name, (*four, share, factor) in arrays.items():
        part = one_way(*four, real, filled, 3.0, share)
        wanted += factor * part / 2
        if factor:
            assert float(parts[name]) == pytest.approx(part, rel=1e-5), name
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_moco_sees_its_own_key_and_the_queue() -> None:
    got = queue_contrast(IMAGE, IMAGE, IMAGE_M, QUEUES[0], 5.0, alpha=0.0, batch_negatives=False)
    everything = one_way(
        IMAGE, IMAGE, IMAGE_M, QUEUES[0], range(B), range(Q), 5.0, 0.0, others=False
    )
    assert float(got) == pytest.approx(everything, rel=1e-5)


def test_without_queue_and_pseudo_targets_it_is_info_nce() -> None:
    none = np.zeros((0, D), np.float32)
    got, _ = momentum_contrast((IMAGE, TEXT), (IMAGE, TEXT), (none, none), 4.0, alpha=0.0)
    assert float(got) == pytest.approx(float(info_nce(IMAGE, TEXT, 4.0)), rel=1e-5)


def test_only_the_towers_learn() -> None:
    def loss(*arrays):
        a, b, c, d, e, f = arrays
        return momentum_contrast((a, b), (c, d), (e, f), 3.0)[0]

    grads = jax.grad(loss, argnums=range(6))(*map(jnp.asarray, (*EMBEDS, *QUEUES)))
    for grad in grads[:2]:
        assert np.abs(grad).max() > 1e-3
    for grad in grads[2:]:
        np.testing.assert_array_equal(grad, 0)


def test_a_queue_replaces_its_oldest_entries() -> None:
    queue, position = jnp.zeros((5, 1)), jnp.asarray(0)
    seen = []
    for start in range(0, 12, 3):
        rows = np.arange(start, start + 3, dtype=np.float32)[:, None] + 1
        queue, position = jax.jit(enqueue)(queue, position, rows)
        seen.append((np.asarray(queue)[:, 0].tolist(), int(position)))
    assert seen == [
        ([1, 2, 3, 0, 0], 3),
        ([6, 2, 3, 4, 5], 1),
        ([6, 7, 8, 9, 5], 4),
        ([11, 12, 8, 9, 10], 2),
    ]


def test_padding_rows_are_not_kept() -> None:
    rows = np.array([[1.0], [2.0], [3.0]], np.float32)
    queue, position = enqueue(
        jnp.zeros((4, 1)), jnp.asarray(3), rows, example_mask=np.array([1, 0, 1])
    )
    assert np.asarray(queue)[:, 0].tolist() == [3, 0, 0, 1]
    assert int(position) == 1
    with pytest.raises(UserError, match="raise the objective's queue_size"):
        enqueue(jnp.zeros((2, 1)), jnp.asarray(0), rows)


def test_copies_follow_slowly_and_without_gradient() -> None:
    old, new = {"a": jnp.ones(2), "b": jnp.zeros(3)}, {"a": jnp.zeros(2), "b": jnp.ones(3)}
    got = follow(old, new, 0.75)
    np.testing.assert_allclose(got["a"], 0.75)
    np.testing.assert_allclose(got["b"], 0.25)
    grad = jax.grad(lambda p: sum(v.sum() for v in follow(old, p, 0.5).values()))(new)
    np.testing.assert_array_equal(grad["a"], 0)
