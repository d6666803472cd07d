"""Without these, a region could see padding sentences, or the two sides could be mixed up."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.models.local_attention import (
    MeanQueryPool,
    SharedCrossAttention,
    SigmoidCrossAttention,
)

B, N, S, D = 2, 4, 3, 6
RNG = np.random.default_rng(0)
REGIONS = RNG.normal(size=(B, N, D)).astype(np.float32)
SENTENCES = RNG.normal(size=(B, S, D)).astype(np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]], np.float32)


def weights_of(module, fill):
    shapes = jax.eval_shape(module.init, jax.random.key(0), REGIONS, SENTENCES, MASK)
    return fill(shapes)


def linear(params, name, x):
    return x @ params[name]["kernel"] + params[name]["bias"]


def test_shared_attention_is_that_of_a_loop(fill) -> None:
    module = SharedCrossAttention()
    variables = weights_of(module, fill)
    p = variables["params"]
    seen = jax.jit(module.apply)(variables, REGIONS, SENTENCES, MASK)
    for b in range(B):
        real = MASK[b] > 0
        sides = (REGIONS[b], SENTENCES[b][real]), (SENTENCES[b][real], REGIONS[b])
        for (queries, others), got in zip(sides, (seen[0][b], seen[1][b][real]), strict=True):
            for query, row in zip(queries, np.asarray(got), strict=True):
                scores = linear(p, "key", others) @ linear(p, "key", query) / D**0.5
                shares = np.exp(scores) / np.exp(scores).sum()
                x = linear(p, "out", shares @ linear(p, "value", others))
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                wanted = x * p["norm"]["scale"] + p["norm"]["bias"]
                np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)


def test_sigmoid_attention_is_that_of_a_loop(fill) -> None:
    module = SigmoidCrossAttention()
    variables = weights_of(module, fill)
    p = variables["params"]
    seen = jax.jit(module.apply)(variables, REGIONS, SENTENCES, MASK)
    for b in range(B):
        real = SENTENCES[b][MASK[b] > 0]
        sides = ("region", REGIONS[b], "sentence", real), ("sentence", real, "region", REGIONS[b])
        for (one, queries, two, others), got in zip(sides, (seen[0][b], seen[1][b]), strict=True):
            for query, row in zip(queries, np.asarray(got), strict=False):
                keys, values = linear(p, f"{two}_key", others), linear(p, f"{two}_value", others)
                shares = 1 / (1 + np.exp(-keys @ linear(p, f"{one}_query", query) / D**0.5))
                np.testing.assert_allclose(row, shares @ values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [SharedCrossAttention(), SigmoidCrossAttention()], ids=repr)
def test_padding_sentences_are_not_seen(module, fill) -> None:
    variables = weights_of(module, fill)
    run = jax.jit(module.apply)
    other = np.where(MASK[..., None] > 0, SENTENCES, 9.0)
    regions, sentences = run(variables, REGIONS, SENTENCES, MASK)
    again, more = run(variables, REGIONS, other, MASK)
    np.testing.assert_allclose(again, regions, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(more[MASK > 0], sentences[MASK > 0], rtol=1e-5, atol=1e-6)


def test_pool_leaves_padding_out(fill) -> None:
    module = MeanQueryPool(heads=2)
    variables = fill(jax.eval_shape(module.init, jax.random.key(0), SENTENCES, MASK))
    run = jax.jit(module.apply)
    pooled = run(variables, SENTENCES, MASK)
    assert pooled.shape == (B, D)
    short = run(variables, SENTENCES[:1, :2])
    np.testing.assert_allclose(pooled[:1], short, rtol=1e-4, atol=1e-5)
    other = np.where(MASK[..., None] > 0, SENTENCES, 9.0)
    np.testing.assert_allclose(run(variables, other, MASK), pooled, rtol=1e-5)
