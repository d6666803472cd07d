"""Without these, the assembled model could embed, merge or fuse something else than its outputs say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, biovil, fusion, heads, pooling, resnet, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

RNG = np.random.default_rng(0)
LENGTHS = np.array([8, 10, 5])
MASK = (np.arange(10) < LENGTHS[:, None]).astype(np.int32)
WORD_IDS = np.array(
    [
        [-1, 0, 0, 1, 2, 2, 3, -1, -1, -1],
        [-1, 0, 1, 2, 2, 2, 3, 4, 5, -1],
        [-1, 0, 1, 1, -1, -1, -1, -1, -1, -1],
    ]
)
BATCH = {
    "image": RNG.normal(size=(3, 32, 32, 3)).astype(np.float32),
    "input_ids": RNG.integers(5, 500, (3, 10)).astype(np.int32),
    "attention_mask": MASK,
    "word_ids": WORD_IDS,
}
TINY_VIT = {"patch_size": 8, "width": 32, "depth": 1, "heads": 2, "mlp_dim": 64}
TINY_BERT = {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64, "vocab_size": 512}


def _model(**options):
    settings = {
        "image_encoder": vit.Encoder(**TINY_VIT),
        "text_encoder": bert.Encoder(**TINY_BERT),
        "image_projection": heads.LinearProjection(16),
        "text_projection": heads.MLPProjection(16),
        "image_token_projection": heads.LinearProjection(12),
        "text_token_projection": heads.LinearProjection(12),
    }
    return VisionLanguageModel(**{**settings, **options})


def _shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH))


def _apply(model, variables, *args, method=None):
    return jax.jit(lambda v, a: model.apply(v, *a, method=method))(variables, args)


def _run(model, fill):
    variables = fill(_shapes(model))
    return _apply(model, variables, BATCH), variables


def test_dual_encoder_returns_what_the_contract_names(fill):
    out, variables = _run(_model(), fill)
    shapes = {k: v.shape for k, v in out.items() if not k.endswith("hidden")}
    assert shapes == {
        "image_tokens": (3, 16, 32),
        "image_cls": (3, 32),
        "image_pooled": (3, 32),
        "image_embed": (3, 16),
        "image_token_embed": (3, 16, 12),
        "text_tokens": (3, 10, 32),
        "text_states": (3, 10, 32),
        "text_token_mask": (3, 10),
        "text_pooled": (3, 32),
        "text_embed": (3, 16),
        "text_token_embed": (3, 10, 12),
    }
    assert set(variables["params"]) == {
        "image_encoder",
        "text_encoder",
        "image_projection",
        "text_projection",
        "image_token_projection",
        "text_token_projection",
    }
    for side in ("image", "text"):
        np.testing.assert_allclose(jnp.linalg.norm(out[f"{side}_embed"], axis=-1), 1, atol=1e-5)
    kernel = variables["params"]["image_projection"]["fc"]["kernel"]
    direction = out["image_pooled"] @ kernel
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    np.testing.assert_allclose(out["image_embed"], direction, atol=1e-5)
    np.testing.assert_array_equal(out["text_token_mask"], MASK)


def test_the_parts_give_what_the_whole_gives(fill):
    model = _model(fusion=fusion.CoAttention(width=16, layers=1, heads=2, mlp_dim=32))
    out, variables = _run(model, fill)
    image_only = {"image": BATCH["image"]}
    text_only = {k: BATCH[k] for k in ("input_ids", "attention_mask")}
    image = _apply(model, variables, image_only, method="encode_image")
    text = _apply(model, variables, text_only, method="encode_text")
    fused = _apply(model, variables, image, text, text_only, method="fuse")
    whole, parts = jax.tree.leaves(out), jax.tree.leaves({**image, **text, **fused})
    assert len(whole) == len(parts)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_fusion_reads_the_class_token_then_the_patches_and_the_pieces_not_the_words(fill):
    model = _model(
        fusion=fusion.CoAttention(width=16, layers=1, heads=2, mlp_dim=32), merge_words=True
    )
    out, variables = _run(model, fill)
    params = variables["params"]["fusion"]
    image = jnp.concatenate([out["image_cls"][:, None], out["image_tokens"]], axis=1)
    for stream, tokens in (("image", image), ("text", out["text_states"])):
        dense = params[f"{stream}_input"]
        expected = tokens @ dense["kernel"] + dense["bias"] + params[f"{stream}_modality"]
        np.testing.assert_allclose(out[f"fused_{stream}_layers"][0], expected, atol=1e-5)
    assert out["fused_image_tokens"].shape == (3, 17, 16)
    assert out["fused_pooled"].shape == (3, 32)


def test_words_are_merged_from_the_chosen_layers_before_the_projection(fill):
    model = _model(merge_words=True, last_layers=2, text_pooling="mean")
    out, variables = _run(model, fill)
    summed = out["text_hidden"][-1] + out["text_hidden"][-2]
    words, mask = pooling.merge_word_pieces(summed, WORD_IDS)
    np.testing.assert_allclose(out["text_tokens"], words, atol=1e-5)
    np.testing.assert_array_equal(out["text_token_mask"], mask)
    np.testing.assert_array_equal(mask.sum(1), [4, 6, 2])
    kernel = variables["params"]["text_token_projection"]["fc"]["kernel"]
    np.testing.assert_allclose(out["text_token_embed"], words @ kernel, atol=1e-5)
    np.testing.assert_allclose(out["text_pooled"][0], words[0, :4].mean(0), atol=1e-5)
    np.testing.assert_allclose(out["text_states"], out["text_hidden"][-1])


def test_the_mean_of_the_projected_patches_is_the_image_embedding(fill):
    model = _model(
        image_projection=biovil.ImageProjection(12),
        image_token_projection=None,
        image_pooling="projected_mean",
    )
    out, variables = _run(model, fill)
    tokens = model.image_projection.apply(
        {name: variables[name]["image_projection"] for name in ("params", "batch_stats")},
        out["image_tokens"],
    )
    np.testing.assert_allclose(out["image_token_embed"], tokens, atol=1e-5)
    mean = tokens.mean(axis=1)
    mean = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(out["image_embed"], mean, atol=1e-5)


def test_visible_patches_come_from_the_batch(fill):
    keep = np.array([[3, 1], [0, 15], [7, 8]], np.int32)
    model = _model()
    variables = fill(_shapes(model))
    out = _apply(model, variables, {**BATCH, "image_keep_ids": keep})
    direct = model.image_encoder.apply(
        {"params": variables["params"]["image_encoder"]}, BATCH["image"], keep_ids=keep
    )
    np.testing.assert_allclose(out["image_tokens"], direct["tokens"], atol=1e-6)
    assert out["image_token_embed"].shape == (3, 2, 12)


def test_padding_of_the_text_changes_no_embedding(fill):
    model = _model(merge_words=True)
    out, variables = _run(model, fill)
    ids = np.where(MASK == 1, BATCH["input_ids"], 7)
    changed = _apply(model, variables, {**BATCH, "input_ids": ids})
    for key in ("text_embed", "text_token_embed", "text_tokens"):
        np.testing.assert_allclose(changed[key], out[key], atol=1e-6)


def test_permuting_the_batch_permutes_every_output(fill):
    model = _model(fusion=fusion.CoAttention(width=16, layers=1, heads=2, mlp_dim=32))
    out, variables = _run(model, fill)
    order = np.array([2, 0, 1])
    shuffled = _apply(model, variables, {k: v[order] for k, v in BATCH.items()})
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(shuffled), strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-5)


def test_resnet_with_batch_norm_heads_trains_and_reports_statistics(fill):
    model = _model(
        image_encoder=resnet.Encoder(**resnet.VARIANTS["test"]),
        image_projection=heads.BatchNormProjection(16, hidden=8),
        image_token_projection=heads.BatchNormProjection(12, hidden=8),
        fusion=fusion.CoAttention(width=16, layers=1, heads=2, mlp_dim=32),
    )
    variables = fill(_shapes(model))

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        out, updates = model.apply(
            {**variables, "params": params}, BATCH, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        total = sum(jnp.sum(out[k] ** 2) for k in ("image_token_embed", "fused_pooled"))
        return total + jnp.sum(out["image_embed"] * out["text_embed"]), (out, updates)

    grads, (out, updates) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert "image_cls" not in out
    assert set(updates["batch_stats"]) == {
        "image_encoder",
        "image_projection",
        "image_token_projection",
    }


def test_without_projections_the_pooled_output_is_embedded_and_token_embeds_are_absent(fill):
    model = VisionLanguageModel(vit.Encoder(**TINY_VIT), bert.Encoder(**TINY_BERT))
    out, variables = _run(model, fill)
    assert set(variables["params"]) == {"image_encoder", "text_encoder"}
    norm = np.linalg.norm(out["text_pooled"], axis=-1, keepdims=True)
    np.testing.assert_allclose(out["text_embed"], out["text_pooled"] / norm, atol=1e-5)
    assert "image_token_embed" not in out
    assert "text_token_embed" not in out


def test_bfloat16_gives_float32_embeddings_close_to_the_float32_model(fill):
    def build(dtype):
        return _model(
            image_encoder=vit.Encoder(**TINY_VIT, dtype=dtype),
            text_encoder=bert.Encoder(**TINY_BERT, dtype=dtype),
            image_projection=heads.LinearProjection(16, dtype=dtype),
            text_projection=heads.MLPProjection(16, dtype=dtype),
        )

    out, variables = _run(build(jnp.float32), fill)
    half = _apply(build(jnp.bfloat16), variables, BATCH)
    assert half["image_tokens"].dtype == jnp.bfloat16
    for key in ("image_embed", "text_embed"):
        assert half[key].dtype == jnp.float32
        assert float(jnp.sum(half[key] * out[key], -1).min()) > 0.995


def test_what_the_model_cannot_do_is_refused_with_a_remedy():
    model = _model()
    image, text = {"image_tokens": None}, {"text_states": None}
    with pytest.raises(UserError, match=r"no fusion encoder.*config\.model\.fusion"):
        model.apply({}, image, text, BATCH, method="fuse")
    without = {k: v for k, v in BATCH.items() if k != "word_ids"}
    with pytest.raises(UserError, match="word_ids"):
        jax.eval_shape(lambda: _model(merge_words=True).init(jax.random.key(0), without))
    both = _model(image_pooling="projected_mean")
    with pytest.raises(UserError, match=r"leave model\.image_token_projection out"):
        jax.eval_shape(lambda: both.init(jax.random.key(0), BATCH))
    with pytest.raises(UserError, match="encoder or projected_mean"):
        jax.eval_shape(lambda: _model(image_pooling="mean").init(jax.random.key(0), BATCH))
    with pytest.raises(UserError, match="encoder or mean"):
        jax.eval_shape(lambda: _model(text_pooling="max").init(jax.random.key(0), BATCH))
