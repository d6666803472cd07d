"""Without these, the local loss of GLoRIA could attend to padding, or tiles could change its value."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses.attended_context import attention_weights, masked_softmax
from medvlp_jax.losses.word_region import (
    aggregate,
    matching_triplet,
    word_region,
    word_region_scores,
)

B, N, L, D = 5, 4, 6, 3
RNG = np.random.default_rng(0)
REGIONS = RNG.normal(size=(B, N, D)).astype(np.float32)
WORDS = RNG.normal(size=(B, L, D)).astype(np.float32)
COUNTS = (6, 3, 1, 4, 2)
MASK = (np.arange(L) < np.array(COUNTS)[:, None]).astype(np.float32)


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def score(regions, words, temp1: float, temp2: float, agg: str, words_first: bool) -> float:
    """Z of one image and one text, word by word."""
    dots = [[float(np.dot(w, v)) for v in regions] for w in words]
    table = np.array(dots, np.float64)
    if words_first:
        table = np.stack([softmax(table[:, n]) for n in range(len(regions))], axis=1)
    total = 0.0
    for w, word in enumerate(words):
        weights = softmax(temp1 * table[w])
        context = sum(a * v.astype(np.float64) for a, v in zip(weights, regions, strict=True))
        cosine = word @ context / np.linalg.norm(word) / np.linalg.norm(context)
        total += math.exp(temp2 * cosine)
    if agg == "mean":
        total /= len(words)
    return math.log(total) / (temp2 if agg == "lse" else 1.0)


def score_table(temp1=4.0, temp2=5.0, agg="lse", words_first=False) -> np.ndarray:
    return np.array(
        [
            [
                score(REGIONS[i], WORDS[j][: COUNTS[j]], temp1, temp2, agg, words_first)
                for j in range(B)
            ]
            for i in range(B)
        ]
    )


@pytest.mark.parametrize("agg", ["lse", "sum", "mean"])
@pytest.mark.parametrize("words_first", [False, True])
@pytest.mark.parametrize("temps", [(4.0, 5.0), (1.5, 0.7)])
def test_scores_are_those_of_a_loop(agg, words_first, temps) -> None:
    got = word_region_scores(
        REGIONS, WORDS, MASK, temp1=temps[0], temp2=temps[1], agg=agg, words_first=words_first
    )
    np.testing.assert_allclose(got, score_table(*temps, agg, words_first), rtol=1e-4, atol=1e-5)


def test_variants_choose_attention_and_aggregation() -> None:
    paper = word_region_scores(REGIONS, WORDS, MASK)
    np.testing.assert_allclose(paper, score_table(), rtol=1e-4, atol=1e-5)
    released = word_region_scores(REGIONS, WORDS, MASK, variant="released")
    wanted = score_table(agg="sum", words_first=True)
    np.testing.assert_allclose(released, wanted, rtol=1e-4, atol=1e-5)
    mixed = word_region_scores(REGIONS, WORDS, MASK, variant="released", words_first=False)
    np.testing.assert_allclose(mixed, score_table(agg="sum"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [None, [1, 0, 1, 1, 0]])
@pytest.mark.parametrize("text_id", [None, [7, 7, 1, 7, 2]])
def test_loss_is_that_of_a_loop(rows, text_id) -> None:
    scores = score_table()
    real = [i for i in range(B) if rows is None or rows[i]]
    wanted = [0.0, 0.0]
    for i in real:
        for way, table in enumerate((scores, scores.T)):
            others = [j for j in real if j == i or text_id is None or text_id[j] != text_id[i]]
            logits = 6.0 * table[i, others]
            wanted[way] -= math.log(softmax(logits)[others.index(i)]) / len(real)
    drop = None
    if text_id is not None:
        ids = np.array(text_id)
        drop = (ids[:, None] == ids) & ~np.eye(B, dtype=bool)
    mask = None if rows is None else np.array(rows, np.float32)
    got = word_region(scores, MASK, temp3=6.0, example_mask=mask, drop_negatives=drop)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("tile", [1, 2, 3, 5, 9])
def test_tiles_change_neither_value_nor_gradient(variant, tile) -> None:
    """Also where the last tile is not full."""

    def run(tile):
        def loss(regions, words):
            scores = word_region_scores(regions, words, MASK, variant=variant, tile=tile)
            return sum(word_region(scores, MASK))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(REGIONS, WORDS)

    value, grads = run(None)
    again, tiled = run(tile)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for one, other in zip(tiled, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_tiles_bound_the_memory() -> None:
    """Of value and gradient together, for a batch whose full attention is 32 x 32 x 32 x 64 floats."""
    regions, words = jnp.ones((32, 64, 8)), jnp.ones((32, 32, 8))
    mask = jnp.ones((32, 32))

    def bytes_of(tile) -> int:
        def loss(regions, words):
            return sum(word_region(word_region_scores(regions, words, mask, tile=tile), mask))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(regions, words).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full = 4 * 32 * 32 * 32 * 64
    assert bytes_of(None) > full
    assert bytes_of(2) < full / 2


def test_padding_words_and_regions_change_nothing() -> None:
    region_mask = np.ones((B, N + 2), np.float32)
    region_mask[:, N:] = 0
    longer = np.concatenate([REGIONS, 9 * REGIONS[:, :2]], axis=1)
    words = np.concatenate([WORDS, 5 * WORDS[:, :3]], axis=1)
    words[:, :L][MASK == 0] = 7.0
    mask = np.concatenate([MASK, np.zeros((B, 3), np.float32)], axis=1)
    for variant in ("paper", "released"):
        got = word_region_scores(longer, words, mask, variant=variant, image_token_mask=region_mask)
        wanted = word_region_scores(REGIONS, WORDS, MASK, variant=variant)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_text_without_words_takes_no_part() -> None:
    mask = MASK.copy()
    mask[1] = 0

    def loss(words):
        return sum(word_region(word_region_scores(REGIONS, words, mask), mask))

    value, grad = jax.value_and_grad(loss)(WORDS)
    rest = [0, 2, 3, 4]
    short = word_region_scores(REGIONS[rest], WORDS[rest], MASK[rest])
    np.testing.assert_allclose(value, sum(word_region(short, MASK[rest])), rtol=1e-5)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[1], 0)


def test_equal_words_and_regions_give_log_b() -> None:
    scores = word_region_scores(np.ones((4, 3, 2)), np.ones((4, 5, 2)), np.ones((4, 5)))
    np.testing.assert_allclose(word_region(scores, np.ones((4, 5))), math.log(4), rtol=1e-5)


def test_aggregations_of_equal_similarities() -> None:
    similarity, mask = np.full((1, 4), 0.5, np.float32), np.array([[1, 1, 1, 0]])
    wanted = {"lse": 0.5 + math.log(3) / 5, "sum": 2.5 + math.log(3), "mean": 2.5}
    for agg, value in wanted.items():
        np.testing.assert_allclose(aggregate(similarity, mask, agg=agg), [value], rtol=1e-6)
        assert aggregate(similarity, 0 * mask, agg=agg).tolist() == [0.0]


def test_masked_softmax_of_nothing_is_zero() -> None:
    got = masked_softmax(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1, 0], [0, 0]]), axis=1)
    np.testing.assert_array_equal(got, [[1, 0], [0, 0]])


def test_attention_sums_to_one_over_real_keys() -> None:
    keep = np.array([1, 0, 1, 1])
    weights = attention_weights(WORDS, REGIONS, key_mask=np.tile(keep, (B, 1)), scale=3.0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[..., 1], 0)


@pytest.mark.parametrize("negatives", [None, [1, 2, 3, 4, 0]])
def test_triplet_is_that_of_a_loop(negatives) -> None:
    scores = score_table()
    rows = [1, 1, 1, 0, 1]
    real = [i for i in range(B) if rows[i]]
    wanted = [0.0, 0.0]
    for way, table in enumerate((scores, scores.T)):
        for i in real:
            others = [j for j in real if j != i and (negatives is None or negatives[i] == j)]
            for j in others:
                gap = max(0.0, 0.3 - table[i, i] + table[i, j])
                wanted[way] += gap / len(others) / len(real)
    chosen = None if negatives is None else np.array(negatives)
    mask = np.array(rows, np.float32)
    got = matching_triplet(scores, margin=0.3, negatives=chosen, example_mask=mask)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
