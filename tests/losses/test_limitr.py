"""Without these, LIMITR's scores could read padding words, or its two local losses mix up their sides."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.limitr import Filtration, limitr_external, limitr_internal, limitr_scores

B, N, L, D = 4, 5, 6, 3
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


REGIONS, WORDS = normal(B, N, D), normal(B, L, D)
COUNTS = (6, 3, 1, 4)
MASK = (np.arange(L) < np.array(COUNTS)[:, None]).astype(np.float32)
SHARED = (normal(D, D), normal(D), normal(D, D), normal(D), normal(D), normal())
BY_WORDS = Filtration(*SHARED, normal(D), normal())
BY_REGIONS = Filtration(*SHARED, normal(D), normal())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def contexts(queries, keys, competing, temp1: float) -> np.ndarray:
    """Context of each query; the first `competing` queries share each key's score among them."""
    table = np.array([[float(q @ k) for k in keys] for q in queries], np.float64)
    shares = np.stack([softmax(table[:competing, k]) for k in range(len(keys))], axis=1)
    return np.stack([softmax(temp1 * row) @ keys for row in shares])


def one_score(tokens, context, w: Filtration) -> float:
    vectors = [unit(x.astype(np.float64) * c) for x, c in zip(tokens, context, strict=True)]
    whole = np.tanh(np.mean(vectors, axis=0) @ w.mean_kernel + w.mean_bias)
    common = [
        float(np.tanh(v @ w.local_kernel + w.local_bias) * whole @ w.common_kernel) + w.common_bias
        for v in vectors
    ]
    pooled = unit(sum(a * v for a, v in zip(softmax(np.array(common)), vectors, strict=True)))
    return 1 / (1 + math.exp(-float(pooled @ w.out_kernel) - float(w.out_bias)))


@pytest.mark.parametrize("tile", [None, 1, 3])
def test_scores_are_those_of_a_loop(tile) -> None:
    wanted = np.zeros((2, B, B))
    for i in range(B):
        for j in range(B):
            image, text = REGIONS[i], WORDS[j, : COUNTS[j]]
            seen = contexts(text, image, COUNTS[j], 2.0)
            wanted[0, i, j] = one_score(text, seen, BY_WORDS)
            wanted[1, i, j] = one_score(image, contexts(image, text, N, 2.0), BY_REGIONS)
    run = jax.jit(lambda *x: limitr_scores(*x, temp1=2.0, tile=tile))
    got = run(REGIONS, WORDS, MASK, BY_WORDS, BY_REGIONS)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_external_is_that_of_a_loop() -> None:
    scores = RNG.random((2, B, B))
    rows = [1, 0, 1, 1]
    real = [i for i in range(B) if rows[i]]
    wanted = [0.0, 0.0]
    for table in scores:
        for way, logits in enumerate((3.0 * table, 3.0 * table.T)):
            for i in real:
                wanted[way] -= math.log(softmax(logits[i, real])[real.index(i)]) / len(real) / 2
    got = limitr_external(*scores, temp3=3.0, example_mask=np.array(rows, np.float32))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    # A text without words takes no part either.
    got = limitr_external(*scores, np.array(rows)[:, None], temp3=3.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_internal_is_that_of_a_loop(variant) -> None:
    total = 0.0
    for i in range(B):
        count = COUNTS[i]
        words, text = (WORDS[i], WORDS[i, :count])
        candidates = count if variant == "paper" else L
        seen = contexts(words[:candidates], REGIONS[i], candidates, 4.0)
        logits = words[:candidates].astype(np.float64) @ seen.T / 0.2
        for k in range(count):
            both = math.log(softmax(logits[k])[k]) + math.log(softmax(logits[:, k])[k])
            total -= both / 2 / count
        seen = contexts(REGIONS[i], text, N, 4.0)
        if (
            variant == "released"
        ):  # each region sees the words of whatever row its mask is taken from
            seen = np.stack(
                [
                    contexts(REGIONS[i], WORDS[i, : COUNTS[(i * N + n) % B]], N, 4.0)[n]
                    for n in range(N)
                ]
            )
        logits = REGIONS[i].astype(np.float64) @ seen.T / 0.2
        for k in range(N):
            both = math.log(softmax(logits[k])[k]) + math.log(softmax(logits[:, k])[k])
            total -= both / 2 / N
    got = limitr_internal(
        REGIONS, WORDS, text_token_mask=MASK, temperature=0.2, scale=0.5, variant=variant
    )
    assert float(got) == pytest.approx(0.5 * total / B / 2, rel=1e-4)


def test_padding_words_change_nothing_in_the_paper_variant() -> None:
    words = WORDS.copy()
    words[MASK == 0] = 9.0
    for run in (
        lambda w: np.stack(limitr_scores(REGIONS, w, MASK, BY_WORDS, BY_REGIONS)),
        lambda w: limitr_internal(REGIONS, w, text_token_mask=MASK),
    ):
        np.testing.assert_allclose(run(words), run(WORDS), rtol=1e-5)
    released = [
        float(limitr_internal(REGIONS, w, text_token_mask=MASK, variant="released"))
        for w in (words, WORDS)
    ]
    assert released[0] != pytest.approx(released[1], rel=1e-3)
