"""Without these, a bound on the mutual information could count padding, or a pair among its own negatives."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.mutual_information import (
    dot_critic,
    mlp_critic,
    mutual_information,
    sentence_scores,
)

B, N, S, D = 4, 3, 2, 5
RNG = np.random.default_rng(0)
REGIONS = RNG.normal(size=(B, N, D)).astype(np.float32)
SENTENCES = RNG.normal(size=(B, S, D + 1)).astype(np.float32)
MASK = np.array([[1, 1], [1, 0], [1, 1], [0, 0]], np.float32)
WEIGHTS = [
    (RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape[1:]).astype(np.float32))
    for shape in ((2 * D + 1, 7), (7, 4), (4, 1))
]
SCORES = RNG.normal(size=(B, B, S)).astype(np.float32)


def perceptron(x: np.ndarray) -> float:
    for kernel, bias in WEIGHTS[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    return float((x @ WEIGHTS[-1][0] + WEIGHTS[-1][1])[0])


@pytest.mark.parametrize("select", ["max", "mean"])
@pytest.mark.parametrize("tile", [None, 3])
def test_scores_are_those_of_a_loop(select, tile) -> None:
    reduce = max if select == "max" else (lambda x: sum(x) / len(x))
    run = jax.jit(lambda r, s: sentence_scores(r, s, mlp_critic(WEIGHTS), select=select, tile=tile))
    got = run(REGIONS, SENTENCES)
    for i in range(B):
        for j in range(B):
            for m in range(S):
                pairs = [np.concatenate([REGIONS[i, n], SENTENCES[j, m]]) for n in range(N)]
                wanted = reduce([perceptron(pair) for pair in pairs])
                assert float(got[i, j, m]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_dot_critic() -> None:
    got = dot_critic(REGIONS, SENTENCES[..., :D])
    assert got.shape == (B, B, S, N)
    assert float(got[1, 2, 0, 1]) == pytest.approx(float(REGIONS[2, 1] @ SENTENCES[1, 0, :D]), 1e-4)


@pytest.mark.parametrize("name", ["infonce", "released", "dv", "jsd"])
@pytest.mark.parametrize("masked", [False, True])
def test_bounds_are_those_of_a_loop(name, masked) -> None:
    rows = [1, 1, 0, 1] if masked else [1] * B
    drop = np.zeros((B, B), bool)
    drop[0, 1] = drop[1, 0] = masked
    real = [i for i in range(B) if rows[i]]
    sentences = [(j, m) for j in real for m in range(S) if MASK[j, m]]
    joint = [float(SCORES[j, j, m]) for j, m in sentences]
    product = [
        float(SCORES[i, j, m]) for j, m in sentences for i in real if i != j and not drop[i, j]
    ]
    if name == "infonce":
        wanted = 0.0
        for j, m in sentences:
            candidates = [float(SCORES[i, j, m]) for i in real if not drop[i, j]]
            total = sum(math.exp(f) for f in candidates)
            wanted -= (float(SCORES[j, j, m]) - math.log(total)) / len(sentences)
    elif name == "released":
        wanted = math.log(sum(math.exp(f) for f in product)) - np.mean(joint)
    elif name == "dv":
        wanted = math.log(np.mean([math.exp(f) for f in product])) - np.mean(joint)
    else:
        wanted = np.mean([math.log(1 + math.exp(-f)) for f in joint])
        wanted += np.mean([math.log(1 + math.exp(f)) for f in product])
    options = dict(estimator="infonce", variant="released")
    got = mutual_information(
        SCORES,
        MASK,
        **(options if name == "released" else dict(estimator=name)),
        example_mask=np.array(rows, np.float32),
        drop_negatives=drop if masked else None,
    )
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_equal_scores_say_nothing() -> None:
    same, mask = np.ones((B, B, S)), np.ones((B, S))
    assert float(mutual_information(same, mask)) == pytest.approx(math.log(B), rel=1e-6)
    assert float(mutual_information(same, mask, estimator="dv")) == pytest.approx(0, abs=1e-6)
    zero = mutual_information(0 * same, mask, estimator="jsd")
    assert float(zero) == pytest.approx(2 * math.log(2), rel=1e-6)


def test_a_padding_sentence_or_a_batch_of_one_has_no_gradient() -> None:
    for name in ("infonce", "dv", "jsd"):
        grad = jax.grad(lambda s, n=name: mutual_information(s, MASK, estimator=n))(SCORES)
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(np.asarray(grad)[:, MASK == 0], 0)
        one = mutual_information(SCORES[:1, :1], MASK[:1], estimator=name)
        assert float(one) == 0
