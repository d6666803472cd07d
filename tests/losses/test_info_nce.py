"""Without these, InfoNCE could contrast padding, double its weight or count equal texts as negatives."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.info_nce import duplicate_negatives, info_nce, retrieval_accuracy

B, D = 6, 5


def embeddings(rows: int = B, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(2, rows, D)).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x[0], x[1]


def loop(image, text, scale, weight=0.5, mask=None, text_id=None) -> float:
    """Anchor by anchor in float64; `text_id` leaves equal texts out of the negatives."""
    real = [i for i in range(len(image)) if mask is None or mask[i]]
    total = 0.0
    for share, anchors, others in ((weight, image, text), (1 - weight, text, image)):
        for i in real:
            scores = {}
            for j in real:
                if text_id is not None and i != j and text_id[i] == text_id[j]:
                    continue
                scores[j] = scale * float(anchors[i].astype(float) @ others[j].astype(float))
            total -= share * (scores[i] - math.log(sum(math.exp(s) for s in scores.values())))
    return total / len(real)


@pytest.mark.parametrize("weight", [0.5, 0.75, 1.0, 0.0])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 1, 0, 1]])
@pytest.mark.parametrize("text_id", [None, [3, 3, 1, 3, 2, 1]])
def test_numpy_loop(weight, mask, text_id) -> None:
    image, text = embeddings()
    drop = None if text_id is None else duplicate_negatives(np.array(text_id))
    mask = None if mask is None else np.array(mask, np.float32)
    got = info_nce(
        image, text, 7.0, image_to_text_weight=weight, example_mask=mask, drop_negatives=drop
    )
    assert float(got) == pytest.approx(loop(image, text, 7.0, weight, mask, text_id), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_uniform_similarity_is_log_b(rows: int) -> None:
    x = np.tile(embeddings(1)[0], (rows, 1))
    assert float(info_nce(x, x, 14.0)) == pytest.approx(math.log(rows), abs=1e-5)


def test_two_orthogonal_pairs_by_hand() -> None:
    eye = np.eye(2, dtype=np.float32)
    assert float(info_nce(eye, eye, 3.0)) == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)


def test_one_row_has_nothing_to_contrast() -> None:
    image, text = embeddings(1)
    value, grad = jax.value_and_grad(info_nce)(image, text, 100.0)
    assert float(value) == 0
    np.testing.assert_array_equal(grad, 0)


def test_swapping_the_modalities() -> None:
    image, text = embeddings()
    same = float(info_nce(image, text, 5.0))
    assert float(info_nce(text, image, 5.0)) == pytest.approx(same, rel=1e-6)
    one_way = float(info_nce(image, text, 5.0, image_to_text_weight=0.75))
    assert one_way != pytest.approx(same, rel=1e-4)
    swapped = info_nce(text, image, 5.0, image_to_text_weight=0.25)
    assert float(swapped) == pytest.approx(one_way, rel=1e-6)


def test_equal_texts_taken_out_of_the_negatives_by_hand() -> None:
    eye = np.eye(3, dtype=np.float32)
    drop = duplicate_negatives(np.array([7, 7, 1]))
    np.testing.assert_array_equal(
        drop, [[False, True, False], [True, False, False], [False, False, False]]
    )
    # Rows 0 and 1 then contrast with row 2 only, row 2 with both.
    wanted = (2 * math.log(1 + math.exp(-2)) + math.log(1 + 2 * math.exp(-2))) / 3
    got = info_nce(eye, eye, 2.0, drop_negatives=drop)
    assert float(got) == pytest.approx(wanted, abs=1e-6)


def test_a_duplicate_neither_pushes_nor_is_pushed() -> None:
    """Where all texts are equal no negative is left: no loss and no gradient."""
    image, text = embeddings()
    drop = duplicate_negatives(np.full(B, 4))
    value, grad = jax.value_and_grad(lambda x: info_nce(x, text, 10.0, drop_negatives=drop))(image)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 100.0, 1e6])
def test_any_scale_is_finite(scale: float) -> None:
    image, text = embeddings()
    value, grads = jax.value_and_grad(info_nce, argnums=(0, 1, 2))(image, text, scale)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_retrieval_accuracy_by_hand() -> None:
    eye = np.eye(3, dtype=np.float32)
    assert float(retrieval_accuracy(eye, eye)) == 1
    # Texts 0 and 1 are exchanged: only row 2 finds its partner, in both directions.
    swapped = eye[[1, 0, 2]]
    assert float(retrieval_accuracy(eye, swapped)) == pytest.approx(1 / 3)
    # Row 0 is padding: without it row 1 has row 2 only, which is as far away; ties go to the lower row.
    mask = np.array([0, 1, 1], np.float32)
    assert float(retrieval_accuracy(eye, swapped, example_mask=mask)) == 1
    # Equal texts are no mistakes.
    drop = duplicate_negatives(np.array([5, 5, 1]))
    assert float(retrieval_accuracy(eye, swapped, drop_negatives=drop)) == 1
    same = np.ones((4, 2), np.float32)
    assert float(retrieval_accuracy(same, same)) == 1 / 4
    assert float(retrieval_accuracy(eye, eye, example_mask=np.zeros(3))) == 0
