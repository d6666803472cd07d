"""Without these, the co-attention of M3AE could read the wrong stream, layer or padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.models import fusion, layers

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 7, 20)).astype(np.float32)
TEXT = RNG.normal(size=(2, 5, 12)).astype(np.float32)
TEXT_MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SMALL = {"width": 16, "layers": 2, "heads": 4, "mlp_dim": 32}


def _cross_layer_params(weights):
    def dense(name):
        return {"kernel": weights[f"w.{name}.weight"].T, "bias": weights[f"w.{name}.bias"]}

    def norm(name):
        name = f"{name}.LayerNorm"
        return {"scale": weights[f"w.{name}.weight"], "bias": weights[f"w.{name}.bias"]}

    def attention(name):
        inner = {k: dense(f"{name}.self.{k}") for k in ("query", "key", "value")}
        return {**inner, "out": dense(f"{name}.output.dense")}

    return {
        "attention": attention("attention"),
        "attention_norm": norm("attention.output"),
        "cross_attention": attention("crossattention"),
        "cross_attention_norm": norm("crossattention.output"),
        "mlp": {"fc1": dense("intermediate.dense"), "fc2": dense("output.dense")},
        "mlp_norm": norm("output"),
    }


def test_cross_layer_equals_the_released_m3ae_code(reference_dir):
    reference = np.load(reference_dir / "m3ae_cross_layer.npz")
    block = layers.PostNormBlock(heads=4, mlp_dim=32, cross_attention=True)
    params = _cross_layer_params(reference)
    mask, other_mask = (
        (reference[k][:, 0, 0] == 0).astype(np.int32) for k in ("mask", "other_mask")
    )

    def run(hidden, other):
        return block.apply({"params": params}, hidden, mask, False, True, other, other_mask)

    out, (self_attention, cross_attention) = run(reference["hidden"], reference["other"])
    np.testing.assert_allclose(out, reference["out"], atol=1e-5)
    np.testing.assert_allclose(self_attention, reference["self_attn"], atol=1e-6)
    np.testing.assert_allclose(cross_attention, reference["cross_attn"], atol=1e-6)


def test_cross_layer_gradients_equal_the_released_m3ae_code(reference_dir):
    reference = np.load(reference_dir / "m3ae_cross_layer.npz")
    block = layers.PostNormBlock(heads=4, mlp_dim=32, cross_attention=True)
    params = _cross_layer_params(reference)
    mask, other_mask = (
        (reference[k][:, 0, 0] == 0).astype(np.int32) for k in ("mask", "other_mask")
    )

    def loss(hidden, other):
        out, _ = block.apply({"params": params}, hidden, mask, False, False, other, other_mask)
        return jnp.sum(out**2)

    grads = jax.grad(loss, (0, 1))(reference["hidden"], reference["other"])
    np.testing.assert_allclose(grads[0], reference["grad_hidden"], atol=1e-4)
    np.testing.assert_allclose(grads[1], reference["grad_other"], atol=1e-4)


def _model(**options):
    return fusion.CoAttention(**{**SMALL, **options})


def _shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, None, TEXT, TEXT_MASK))


def _apply(model, variables, image, image_mask, text, text_mask):
    run = jax.jit(model.apply)
    return run(variables, image, image_mask, text, text_mask)


def test_both_streams_read_the_previous_layer_of_the_other(fill):
    model = _model(last_attention=True)
    variables = fill(_shapes(model))
    out = _apply(model, variables, IMAGE, None, TEXT, TEXT_MASK)
    params = variables["params"]
    enter = lambda k, x: (  # noqa: E731
        x @ params[f"{k}_input"]["kernel"] + params[f"{k}_input"]["bias"] + params[f"{k}_modality"]
    )
    image, text = enter("image", IMAGE), enter("text", TEXT)
    np.testing.assert_allclose(out["fused_image_layers"][0], image, atol=1e-5)
    np.testing.assert_allclose(out["fused_text_layers"][0], text, atol=1e-5)
    block = layers.PostNormBlock(heads=4, mlp_dim=32, cross_attention=True)
    for i in range(2):
        new_image, _ = block.apply(
            {"params": params[f"image_block_{i}"]}, image, None, False, False, text, TEXT_MASK
        )
        text, _ = block.apply(
            {"params": params[f"text_block_{i}"]}, text, TEXT_MASK, False, False, image, None
        )
        image = new_image
        np.testing.assert_allclose(out["fused_image_layers"][i + 1], image, atol=1e-5)
        np.testing.assert_allclose(out["fused_text_layers"][i + 1], text, atol=1e-5)
    np.testing.assert_array_equal(out["fused_image_tokens"], out["fused_image_layers"][-1])
    pooled = [
        np.tanh(
            x[:, 0] @ params[f"{k}_pooler"]["dense"]["kernel"]
            + params[f"{k}_pooler"]["dense"]["bias"]
        )
        for k, x in (("text", text), ("image", image))
    ]
    np.testing.assert_allclose(out["fused_pooled"], np.concatenate(pooled, 1), atol=1e-5)
    assert out["fused_image_attention"].shape == (2, 4, 7, 5)
    assert out["fused_text_attention"].shape == (2, 4, 5, 7)
    np.testing.assert_array_equal(out["fused_image_attention"][1, :, :, 3:], 0)


def test_padding_of_either_stream_never_matters(fill):
    model = _model()
    variables = fill(_shapes(model))
    image_mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    out = _apply(model, variables, IMAGE, image_mask, TEXT, TEXT_MASK)
    text = np.where(TEXT_MASK[..., None] == 1, TEXT, 50)
    image = np.where(image_mask[..., None] == 1, IMAGE, 50)
    changed = _apply(model, variables, image, image_mask, text, TEXT_MASK)
    np.testing.assert_array_equal(changed["fused_pooled"], out["fused_pooled"])
    np.testing.assert_array_equal(
        changed["fused_text_tokens"][1, :3], out["fused_text_tokens"][1, :3]
    )
    np.testing.assert_array_equal(
        changed["fused_image_tokens"][1, :4], out["fused_image_tokens"][1, :4]
    )


def test_rematerialisation_keeps_the_gradient(fill):
    variables = fill(_shapes(_model(layers=1)))

    def grads(remat):
        model = _model(layers=1, remat=remat)

        def loss(v):
            rngs = {"dropout": jax.random.key(2)}
            out = model.apply(v, IMAGE, None, TEXT, TEXT_MASK, train=True, rngs=rngs)
            return jnp.sum(out["fused_pooled"] ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(variables))

    for a, b in zip(grads("none"), grads("full"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_size_of_m3ae():
    model = fusion.CoAttention()
    tokens = jnp.zeros((1, 4, 768))
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), tokens, None, tokens, jnp.ones((1, 4)))
    )
    # 12 cross layers (self- and cross-attention, feed-forward), two inputs, two poolers, two modalities.
    cross = 2 * (4 * (768 * 768 + 768)) + 2 * 768 * 3072 + 3072 + 768 + 3 * 2 * 768
    expected = 12 * cross + 4 * (768 * 768 + 768) + 2 * 768
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_bfloat16_stays_close_to_float32(fill):
    variables = fill(_shapes(_model()))
    half = _apply(_model(dtype=jnp.bfloat16), variables, IMAGE, None, TEXT, TEXT_MASK)
    plain = _apply(_model(), variables, IMAGE, None, TEXT, TEXT_MASK)
    assert half["fused_pooled"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        half["fused_pooled"].astype(np.float32), plain["fused_pooled"], atol=0.05
    )
