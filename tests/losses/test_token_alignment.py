"""Without these, padding words could be attended to, or the variants of MGCA could be mixed up."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from medvlp_jax.losses.token_alignment import clipped_weights, normalise, token_alignment

B, N, L, D = 3, 4, 5, 6
RNG = np.random.default_rng(0)
PATCHES = RNG.normal(size=(B, N, D)).astype(np.float32)
WORDS = RNG.normal(size=(B, L, D)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.float32)
WORD_WEIGHTS = MASK / MASK.sum(1, keepdims=True)
PATCH_WEIGHTS = np.asarray(clipped_weights(RNG.random((B, N))))


def loss(patches=PATCHES, words=WORDS, mask=MASK, weights=WORD_WEIGHTS, **options):
    run = jax.jit(
        lambda p, w: token_alignment(
            p, w, image_weights=PATCH_WEIGHTS, text_weights=weights, text_token_mask=mask, **options
        )
    )
    return run(patches, words)


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def matched(tokens, context, weights, tau) -> float:
    """Token k against all contexts and context k against all tokens."""
    total = 0.0
    for k in range(len(tokens)):
        logits = tokens @ context.T / tau
        total -= weights[k] * math.log(softmax(logits[k])[k])
        total -= weights[k] * math.log(softmax(logits[:, k])[k])
    return total / 2


def loop(released: bool, tau: float = 0.1) -> float:
    total = 0.0
    for b in range(B):
        patches, words, real = unit(PATCHES[b]), unit(WORDS[b]), MASK[b] > 0
        context = np.stack([softmax(w @ patches.T / tau) @ patches for w in words])
        keep = slice(None) if released else real  # the code leaves padding among the negatives
        total += matched(words[keep], unit(context)[keep], WORD_WEIGHTS[b][keep], tau)
        context = np.stack([softmax(p @ words[real].T / tau) @ words[real] for p in patches])
        total += matched(patches, context if released else unit(context), PATCH_WEIGHTS[b], tau)
    return total / B


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_numpy_loop(variant: str) -> None:
    got = loss(variant=variant)
    assert float(got) == pytest.approx(loop(variant == "released"), rel=1e-5)


def test_the_patch_context_of_a_resnet_is_normalised_in_the_released_code() -> None:
    vit = float(loss(variant="released"))
    resnet = float(loss(variant="released", normalise_patch_context=True))
    assert vit != pytest.approx(resnet, rel=1e-3)
    full = np.ones_like(MASK)
    weights = full / L
    # Without padding words that is all the variants differ in.
    a = loss(variant="released", normalise_patch_context=True, mask=full, weights=weights)
    b = loss(variant="paper", mask=full, weights=weights)
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_padding_words_never_matter() -> None:
    junk = np.where(MASK[..., None] > 0, WORDS, 1e3)
    assert float(loss(words=junk)) == pytest.approx(float(loss()), rel=1e-5)
    longer = np.concatenate([WORDS, np.ones((B, 2, D), np.float32)], axis=1)
    wider = [np.pad(x, ((0, 0), (0, 2))) for x in (MASK, WORD_WEIGHTS)]
    got = loss(words=longer, mask=wider[0], weights=wider[1])
    assert float(got) == pytest.approx(float(loss()), rel=1e-5)
    # The released code differs: padding words are negatives of the real ones.
    released = float(loss(variant="released"))
    assert float(loss(words=junk, variant="released")) != pytest.approx(released, rel=1e-4)


def test_length_of_the_vectors_never_matters() -> None:
    for variant in ("paper", "released"):
        a = float(loss(variant=variant))
        b = float(loss(PATCHES * 7, WORDS * 0.01, variant=variant))
        assert b == pytest.approx(a, rel=1e-5)


def test_order_of_words_never_matters() -> None:
    order = RNG.permutation(L)
    got = loss(words=WORDS[:, order], mask=MASK[:, order], weights=WORD_WEIGHTS[:, order])
    assert float(got) == pytest.approx(float(loss()), rel=1e-5)


def test_one_word_and_one_patch_have_nothing_to_contrast() -> None:
    one = np.ones((1, 1), np.float32)
    got = token_alignment(
        PATCHES[:1, :1], WORDS[:1, :1], image_weights=one, text_weights=one, text_token_mask=one
    )
    assert float(got) == pytest.approx(0, abs=1e-6)


def test_a_report_without_words_costs_nothing_on_the_word_side() -> None:
    empty = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.float32)
    value, grads = jax.value_and_grad(
        lambda w: loss(words=w, mask=empty, weights=WORD_WEIGHTS * empty)
    )(WORDS)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_weights_are_clipped_to_percentiles() -> None:
    attention = np.array([[0.0, 1, 2, 3, 4, 100], [0, 0, 0, 0, 0, 0], [0, 0, 5, 0, 0, 0]])
    weights = np.asarray(clipped_weights(attention))
    low, high = np.quantile([1, 2, 3, 4, 100], [0.1, 0.9])
    wanted = np.clip([1, 2, 3, 4, 100], low, high)
    np.testing.assert_allclose(weights[0, 1:], wanted / wanted.sum(), rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], 0)
    np.testing.assert_array_equal(weights[1], 0)
    np.testing.assert_allclose(weights[2], [0, 0, 1, 0, 0, 0])


def test_weights_carry_no_gradient() -> None:
    grad = jax.grad(lambda a: (clipped_weights(a) ** 2).sum())(RNG.random((2, 5)))
    np.testing.assert_array_equal(grad, 0)


def test_zero_vectors_have_no_direction_and_no_gradient() -> None:
    x = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    np.testing.assert_allclose(normalise(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    grad = jax.grad(lambda v: normalise(v)[:, 0].sum())(x)
    np.testing.assert_allclose(grad, [[0, 0], [0.128, -0.096]], rtol=1e-5)
