"""Without these, padding, batch order, extreme values or the number of devices could change a loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medvlp_jax.losses import (
    captioning,
    masked,
    matching,
    prototype,
    siglip,
    soft_contrast,
    token_alignment,
)
from medvlp_jax.losses import info_nce as nce
from medvlp_jax.parallel.mesh import make_mesh

B, D, N, L, K = 8, 6, 5, 7, 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inputs(rows: int = B, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    words = (rng.random((rows, L)) < 0.7).astype(np.float32)
    words[:, 0] = 1
    return {
        "image": unit(normal(rows, D)),
        "text": unit(normal(rows, D)),
        "label": rng.integers(-1, 2, (rows, K)).astype(np.float32),
        "text_label": rng.integers(-1, 2, (rows, K)).astype(np.float32),
        "patches": normal(rows, N, D),
        "words": normal(rows, L, D),
        "word_mask": words,
        "word_attention": rng.random((rows, L)).astype(np.float32) * words,
        "patch_attention": rng.random((rows, N)).astype(np.float32),
        "logits": normal(rows, L, 11),
        "ids": rng.integers(0, 11, (rows, L)),
        "labels": np.where(rng.random((rows, L)) < 0.4, rng.integers(0, 11, (rows, L)), -100),
        "pair_logits": normal(rows, 2),
        "pair_labels": rng.integers(0, 2, rows),
        "pixels": normal(rows, N, 12),
        "predicted": normal(rows, N, 12),
        "removed": (rng.random((rows, N)) < 0.5).astype(np.float32),
        "mask": np.ones(rows, np.float32),
    }


PROTOTYPES = unit(np.random.default_rng(9).normal(size=(3, D)).astype(np.float32))


def tokens(x, variant):
    return token_alignment.token_alignment(
        x["patches"],
        x["words"],
        image_weights=token_alignment.clipped_weights(x["patch_attention"]),
        text_weights=token_alignment.clipped_weights(x["word_attention"]),
        text_token_mask=x["word_mask"],
        variant=variant,
        example_mask=x["mask"],
    )


def soft(x, cosine):
    targets = soft_contrast.label_similarity(x["label"], x["text_label"], cosine=cosine)
    logits = 10.0 * jnp.matmul(x["image"], x["text"].T, precision="highest")
    return soft_contrast.soft_contrast(logits, targets, example_mask=x["mask"])


LOSSES = {
    "info_nce": lambda x: nce.info_nce(x["image"], x["text"], 10.0, example_mask=x["mask"]),
    "convirt": lambda x: nce.info_nce(
        x["image"], x["text"], 10.0, image_to_text_weight=0.75, example_mask=x["mask"]
    ),
    "siglip": lambda x: siglip.siglip(x["image"], x["text"], 10.0, -10.0, example_mask=x["mask"]),
    "medclip_paper": lambda x: soft(x, True),
    "medclip_released": lambda x: soft(x, False),
    "token_paper": lambda x: tokens(x, "paper"),
    "token_released": lambda x: tokens(x, "released"),
    "prototype": lambda x: prototype.prototype_alignment(
        x["image"], x["text"], PROTOTYPES, example_mask=x["mask"]
    ),
    "captioning": lambda x: captioning.captioning(
        x["logits"], x["ids"], x["word_mask"], example_mask=x["mask"]
    )[0],
    "mlm": lambda x: masked.masked_language(x["logits"], x["labels"], example_mask=x["mask"])[0],
    "itm": lambda x: matching.matching(x["pair_logits"], x["pair_labels"], example_mask=x["mask"])[
        0
    ],
    "mim": lambda x: masked.masked_image(
        x["predicted"], x["pixels"], x["removed"], example_mask=x["mask"]
    ),
}
FLOATS = ("image", "text", "patches", "words", "logits", "pair_logits", "predicted")


@functools.cache
def compiled(name: str):
    """Value and gradients of a loss; compiled once per shape and placement for all tests."""

    def run(x):
        def of(floats):
            return LOSSES[name]({**x, **floats})

        return jax.value_and_grad(of)({k: jnp.asarray(x[k]) for k in FLOATS})

    return jax.jit(run)


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    return compiled(request.param)


def test_permuting_the_batch_changes_nothing(loss) -> None:
    x = inputs()
    order = np.random.default_rng(1).permutation(B)
    value, grads = loss(x)
    again, permuted = loss({k: v[order] for k, v in x.items()})
    np.testing.assert_allclose(again, value, rtol=2e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(permuted[key], grad[order], atol=1e-5)


def test_padded_rows_change_nothing(loss) -> None:
    x = inputs()
    value, grads = loss(x)
    junk = inputs(3, seed=5)
    padded = {
        k: np.concatenate([v, 50 * junk[k] if k in FLOATS else junk[k]]) for k, v in x.items()
    }
    padded["mask"][B:] = 0
    again, padded_grads = loss(padded)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(padded_grads[key][:B], grad, atol=1e-5)
        np.testing.assert_array_equal(padded_grads[key][B:], 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_number_of_devices_changes_nothing(loss, devices: int) -> None:
    """Compared with one device."""
    x = inputs()
    value, grads = loss(x)
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    placed = {
        k: jax.device_put(v, NamedSharding(mesh, PartitionSpec("data"))) for k, v in x.items()
    }
    again, again_grads = loss(placed)
    assert len(again.sharding.device_set) == devices
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(again_grads[key], grad, atol=1e-5)


@pytest.mark.parametrize(("rows", "factor"), [(B, 1e4), (B, 0.0), (1, 1.0), (1, 1e4)])
def test_extreme_inputs_stay_finite(loss, rows: int, factor: float) -> None:
    x = inputs(rows)
    x.update({k: x[k] * np.float32(factor) for k in FLOATS})
    value, grads = loss(x)
    assert np.isfinite(value)
    for key, grad in grads.items():
        assert np.all(np.isfinite(grad)), key
        # A zero vector has no direction: a normalised loss must not divide by its length.
        assert np.abs(grad).max() < 1e6, key


def test_nothing_to_learn_from_is_zero(loss) -> None:
    x = inputs()
    x["mask"][:] = 0
    value, grads = loss(x)
    assert float(value) == 0
    assert all(np.all(np.asarray(g) == 0) for g in grads.values())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_bfloat16_inputs_give_a_float32_loss(name: str) -> None:
    x = inputs()
    half = {k: jnp.asarray(v, jnp.bfloat16) if k in FLOATS else v for k, v in x.items()}
    shape = jax.eval_shape(LOSSES[name], half)
    assert shape.dtype == jnp.float32
    assert shape.shape == ()
