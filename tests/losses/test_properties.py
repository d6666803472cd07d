"""Without these, padding, batch order, extreme values or the number of devices could change a loss."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medvlp_jax.losses import info_nce as nce
from medvlp_jax.losses import masked, matching, prototype, siglip, soft_contrast, token_alignment
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
    "mlm": lambda x: masked.masked_language(x["logits"], x["labels"], example_mask=x["mask"])[0],
    "itm": lambda x: matching.matching(x["pair_logits"], x["pair_labels"], example_mask=x["mask"])[
        0
    ],
    "mim": lambda x: masked.masked_image(
        x["predicted"], x["pixels"], x["removed"], example_mask=x["mask"]
    ),
}
FLOATS = ("image", "text", "patches", "words", "logits", "pair_logits", "predicted")


def value_and_grads(loss, x):
    def of(floats):
        return loss({**x, **floats})

    return jax.value_and_grad(of)({k: jnp.asarray(x[k]) for k in FLOATS})


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    return LOSSES[request.param]


def test_permuting_the_batch_changes_nothing(loss) -> None:
    x = inputs()
    order = np.random.default_rng(1).permutation(B)
    np.testing.assert_allclose(loss({k: v[order] for k, v in x.items()}), loss(x), rtol=2e-5)


def test_padded_rows_change_nothing(loss) -> None:
    x = inputs()
    value, grads = value_and_grads(loss, x)
    junk = inputs(3, seed=5)
    padded = {
        k: np.concatenate([v, 50 * junk[k] if k in FLOATS else junk[k]]) for k, v in x.items()
    }
    padded["mask"][B:] = 0
    again, padded_grads = value_and_grads(loss, padded)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(padded_grads[key][:B], grad, atol=1e-5)
        np.testing.assert_array_equal(padded_grads[key][B:], 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_number_of_devices_changes_nothing(loss, devices: int) -> None:
    x = inputs()
    value, grads = value_and_grads(loss, x)
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    placed = {
        k: jax.device_put(v, NamedSharding(mesh, PartitionSpec("data"))) for k, v in x.items()
    }
    again, again_grads = jax.jit(lambda x: value_and_grads(loss, x))(placed)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(again_grads[key], grad, atol=1e-5)


def test_extreme_inputs_stay_finite(loss) -> None:
    for rows, factor in ((B, 1e4), (1, 1.0), (1, 1e4), (2, 0.0)):
        x = inputs(rows)
        x.update({k: x[k] * factor for k in FLOATS})
        value, grads = value_and_grads(loss, x)
        assert np.isfinite(value), (rows, factor)
        for key, grad in grads.items():
            assert np.all(np.isfinite(grad)), (rows, factor, key)


def test_nothing_to_learn_from_is_zero(loss) -> None:
    x = inputs()
    x["mask"][:] = 0
    value, grads = value_and_grads(loss, x)
    assert float(value) == 0
    assert all(np.all(np.asarray(g) == 0) for g in grads.values())


# ---------------------------------------------------------------------------------------------------
# Closed forms


def test_info_nce_at_uniform_similarity_is_log_b() -> None:
    x = np.tile(unit(np.ones((1, D), np.float32)), (B, 1))
    assert float(nce.info_nce(x, x, 14.0)) == pytest.approx(math.log(B), abs=1e-5)


def test_info_nce_of_two_pairs_by_hand() -> None:
    eye = np.eye(2, dtype=np.float32)
    assert float(nce.info_nce(eye, eye, 3.0)) == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)


def test_info_nce_weights_its_directions() -> None:
    x = inputs()
    both = [float(nce.info_nce(x["image"], x["text"], 5.0, image_to_text_weight=w)) for w in (1, 0)]
    mixed = float(nce.info_nce(x["image"], x["text"], 5.0, image_to_text_weight=0.75))
    assert both[0] != both[1]
    assert mixed == pytest.approx(0.75 * both[0] + 0.25 * both[1], rel=1e-6)
    assert both[0] == pytest.approx(
        float(nce.info_nce(x["text"], x["image"], 5.0, image_to_text_weight=0)), rel=1e-6
    )


def test_equal_texts_can_be_taken_out_of_the_negatives() -> None:
    eye = np.eye(3, dtype=np.float32)
    drop = nce.duplicate_negatives(np.array([7, 7, 1]))
    assert drop.sum() == 2
    # Rows 0 and 1 then contrast with row 2 only, row 2 with both.
    wanted = (2 * math.log(1 + math.exp(-2)) + math.log(1 + 2 * math.exp(-2))) / 3
    assert float(nce.info_nce(eye, eye, 2.0, drop_negatives=drop)) == pytest.approx(
        wanted, abs=1e-6
    )


def test_siglip_at_zero_logits_is_b_log_2() -> None:
    zero = np.zeros((B, D), np.float32)
    assert float(siglip.siglip(zero, zero, 1.0, 0.0)) == pytest.approx(B * math.log(2), rel=1e-6)


def test_siglip_numpy_loop() -> None:
    x = inputs()
    total = 0.0
    for i in range(B):
        for j in range(B):
            y = 1 if i == j else -1
            total += math.log1p(math.exp(-y * (4 * float(x["image"][i] @ x["text"][j]) - 1)))
    assert float(siglip.siglip(x["image"], x["text"], 4.0, -1.0)) == pytest.approx(
        total / B, rel=1e-5
    )


def test_soft_contrast_with_distinct_labels_is_nearly_info_nce() -> None:
    x = inputs()
    logits = 5 * x["image"] @ x["text"].T
    hard = soft_contrast.soft_contrast(logits, 1e3 * np.eye(B))
    assert float(hard) == pytest.approx(float(nce.info_nce(x["image"], x["text"], 5.0)), rel=1e-5)


def test_label_similarity_is_a_cosine() -> None:
    a = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    wanted = [[1, 1 / math.sqrt(2), 0], [1 / math.sqrt(2), 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(soft_contrast.label_similarity(a, a), wanted, atol=1e-6)


def test_masked_language_by_hand() -> None:
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 1] = [0, 10, 0, 0]
    labels = np.array([[-100, 1, 2]])
    loss, accuracy = masked.masked_language(logits, labels)
    wanted = (math.log(1 + 3 * math.exp(-10)) + math.log(4)) / 2
    assert float(loss) == pytest.approx(wanted, abs=1e-6)
    assert float(accuracy) == 0.5


def test_masked_language_ignores_unmasked_tokens() -> None:
    x = inputs()
    changed = np.where((x["labels"] == -100)[..., None], 99.0, x["logits"])
    a, b = (masked.masked_language(v, x["labels"])[0] for v in (x["logits"], changed))
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_masked_image_ignores_visible_patches() -> None:
    x = inputs()
    changed = np.where(x["removed"][..., None] > 0, x["predicted"], 99.0)
    a, b = (masked.masked_image(v, x["pixels"], x["removed"]) for v in (x["predicted"], changed))
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_masked_image_by_hand() -> None:
    target = np.array([[[0.0, 2.0], [5.0, 5.0]]], np.float32)
    mask = np.array([[1.0, 1.0]], np.float32)
    # Patch 0 normalises to (-1, 1) / sqrt(2); patch 1 has no variance and becomes 0.
    loss = masked.masked_image(np.zeros((1, 2, 2)), target, mask)
    assert float(loss) == pytest.approx(0.25, abs=1e-4)


def test_padding_words_never_matter() -> None:
    x = inputs()
    junk = np.where(x["word_mask"][..., None] > 0, x["words"], 1e3)
    a, b = (tokens({**x, "words": w}, "paper") for w in (x["words"], junk))
    assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_token_weights_are_clipped_to_percentiles() -> None:
    weights = token_alignment.clipped_weights(
        np.array([[0.0, 1, 2, 3, 4, 100], [0, 0, 0, 0, 0, 0]])
    )
    low, high = np.quantile([1, 2, 3, 4, 100], [0.1, 0.9])
    wanted = np.clip([1, 2, 3, 4, 100], low, high)
    np.testing.assert_allclose(weights[0, 1:], wanted / wanted.sum(), rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], 0)
    np.testing.assert_array_equal(weights[1], 0)


def test_sinkhorn_balances_prototypes() -> None:
    scores = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    codes = prototype.sinkhorn(scores, epsilon=0.5, iterations=50)
    np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(axis=0), 400 / 5, rtol=1e-3)


def test_codes_carry_no_gradient() -> None:
    grad = jax.grad(lambda s: jnp.sum(prototype.sinkhorn(s) * 3.0))(jnp.ones((4, 3)))
    np.testing.assert_array_equal(grad, 0)
