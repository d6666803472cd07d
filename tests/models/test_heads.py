"""Without these, projections and pretraining heads could differ from the systems they reproduce."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import heads, vit

RNG = np.random.default_rng(0)


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def _mgca_variables(reference, which):
    key = f"{which}.head"
    kernel = lambda i: reference[f"{key}.{i}.weight"].reshape(-1, (6, 10)[i == 3]).T  # noqa: E731
    params = {
        "fc1": {"kernel": kernel(0), "bias": reference[f"{key}.0.bias"]},
        "norm1": {"scale": reference[f"{key}.1.weight"], "bias": reference[f"{key}.1.bias"]},
        "fc2": {"kernel": kernel(3), "bias": reference[f"{key}.3.bias"]},
    }
    fresh = lambda n: {"mean": np.zeros(n, np.float32), "var": np.ones(n, np.float32)}  # noqa: E731
    return {"params": params, "batch_stats": {"norm1": fresh(10), "norm2": fresh(4)}}


@pytest.mark.parametrize(("which", "source"), [("global", "x"), ("local", "y")])
def test_batch_norm_projection_equals_the_released_mgca_code(reference_dir, which, source):
    reference = np.load(reference_dir / "mgca_projection_heads.npz")
    head, x = heads.BatchNormProjection(4, hidden=10), reference[source]
    variables = _mgca_variables(reference, which)
    out, updates = head.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, reference[f"out_{which}_train"], atol=1e-5)
    evaluated = head.apply({**variables, **updates}, x, train=False)
    np.testing.assert_allclose(evaluated, reference[f"out_{which}_eval"], atol=1e-5)


def test_projections_are_the_layers_they_name():
    x = _normal(2, 5, 6)
    linear = heads.LinearProjection(3)
    params = linear.init(jax.random.key(0), x)["params"]
    assert set(params["fc"]) == {"kernel"}
    np.testing.assert_allclose(
        linear.apply({"params": params}, x), x @ params["fc"]["kernel"], atol=1e-6
    )
    assert (
        "bias"
        in heads.LinearProjection(3, use_bias=True).init(jax.random.key(0), x)["params"]["fc"]
    )

    mlp = heads.MLPProjection(3, hidden=7)
    params = jax.tree.map(lambda a: a + 0.1, mlp.init(jax.random.key(0), x)["params"])
    hidden = np.maximum(x @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    expected = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(mlp.apply({"params": params}, x), expected, atol=1e-5)
    assert heads.MLPProjection(3).init(jax.random.key(0), x)["params"]["fc1"]["kernel"].shape == (
        6,
        6,
    )


def test_tanh_pooler_reads_the_first_token():
    x = _normal(2, 5, 6)
    variables = heads.TanhPooler().init(jax.random.key(0), x)
    dense = variables["params"]["dense"]
    expected = np.tanh(x[:, 0] @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(heads.TanhPooler().apply(variables, x), expected, atol=1e-5)


def test_mlm_head_equals_transformers_lm_prediction_head(randomise):
    import torch
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    theirs = randomise(BertLMPredictionHead(BertConfig(hidden_size=16, vocab_size=30)))
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    params = {
        "transform": {
            "kernel": weights["transform.dense.weight"].T,
            "bias": weights["transform.dense.bias"],
        },
        "norm": {
            "scale": weights["transform.LayerNorm.weight"],
            "bias": weights["transform.LayerNorm.bias"],
        },
    }
    table, bias = weights["decoder.weight"], theirs.decoder.bias.detach().numpy()
    x = _normal(2, 5, 16)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    head = heads.MlmHead(30)
    untied = {"params": {**params, "decoder": {"kernel": table.T, "bias": bias}}}
    tied = {"params": {**params, "bias": bias}}
    np.testing.assert_allclose(head.apply(untied, x), expected, atol=1e-5)
    np.testing.assert_allclose(head.apply(tied, x, table), expected, atol=1e-5)
    with pytest.raises(UserError, match="vocab_size"):
        head.apply(tied, x, table[:20])


def test_itm_head_gives_two_float32_logits():
    x = jnp.asarray(_normal(4, 6), jnp.bfloat16)
    head = heads.ItmHead(dtype=jnp.bfloat16)
    out = head.apply(head.init(jax.random.key(0), x), x)
    assert out.shape == (4, 2)
    assert out.dtype == jnp.float32


def _decoder(**options):
    return heads.MaskedImageDecoder(patch_size=4, width=24, depth=1, heads=2, **options)


def _masking(rows, count, kept):
    order = np.stack([RNG.permutation(count) for _ in range(rows)])
    return order[:, :kept], np.argsort(order, axis=1)


@pytest.mark.parametrize("class_token", [True, False])
def test_decoder_puts_every_token_back_in_its_place(class_token):
    decoder = _decoder(class_token=class_token)
    keep, restore = _masking(2, 9, 4)
    tokens = _normal(2, 4 + class_token, 10)
    variables = jax.jit(decoder.init)(jax.random.key(0), tokens, restore)
    params = variables["params"]
    out = decoder.apply(variables, tokens, restore)
    assert out.shape == (2, 9, 48)

    # The same input assembled by hand, without any gather, fed to an order that is already restored.
    embedded = tokens @ params["embed"]["kernel"] + params["embed"]["bias"]
    full = np.broadcast_to(params["mask_token"], (2, 9, 24)).copy()
    for row in range(2):
        full[row, keep[row]] = embedded[row, int(class_token) :]
    if class_token:
        full = np.concatenate([embedded[:, :1], full], axis=1)
    identity = {**params, "embed": {"kernel": jnp.eye(24), "bias": jnp.zeros(24)}}
    straight = decoder.apply({"params": identity}, full, np.arange(9)[None].repeat(2, 0))
    np.testing.assert_allclose(out, straight, atol=1e-4)


def test_decoder_does_not_depend_on_the_order_of_the_kept_tokens():
    decoder = _decoder(class_token=False)
    keep, restore = _masking(1, 9, 4)
    tokens = _normal(1, 4, 10)
    variables = jax.jit(decoder.init)(jax.random.key(0), tokens, restore)
    swap = np.array([2, 0, 3, 1])
    removed = np.argsort(restore, axis=1)[:, 4:]
    other_restore = np.argsort(np.concatenate([keep[:, swap], removed], axis=1), axis=1)
    np.testing.assert_allclose(
        decoder.apply(variables, tokens[:, swap], other_restore),
        decoder.apply(variables, tokens, restore),
        atol=1e-5,
    )


def test_decoder_needs_the_grid_when_it_is_not_square():
    _, restore = _masking(2, 6, 4)
    tokens = _normal(2, 5, 10)
    with pytest.raises(UserError, match="6 patches do not fill a grid of 2x2"):
        _decoder().init(jax.random.key(0), tokens, restore)
    wide = _decoder(grid=(2, 3))
    shape = jax.eval_shape(wide.init, jax.random.key(0), tokens, restore)
    assert shape["params"]["pixels"]["kernel"].shape == (24, 48)


def test_decoder_equals_the_mae_decoder_written_in_torch(randomise):
    import torch
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

    config = ViTMAEConfig(
        hidden_size=16,
        image_size=12,
        patch_size=4,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=96,
        attn_implementation="eager",
        layer_norm_eps=1e-6,
    )
    theirs = randomise(ViTMAEDecoder(config, num_patches=9))
    with torch.no_grad():
        table = vit.sincos_2d(24, (3, 3), cls=True)[None].astype(np.float32)
        theirs.decoder_pos_embed.copy_(torch.from_numpy(table))
    _, restore = _masking(2, 9, 4)
    tokens = _normal(2, 5, 16)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), torch.from_numpy(restore)).logits
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    params = _mae_params(weights)
    out = _decoder().apply({"params": params}, tokens, restore)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_identity_has_no_parameters():
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    out, variables = heads.Identity().init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(out, x)
    assert not variables


def _mae_params(weights):
    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    layer = "decoder_layers.0"
    parts = zip(("query", "key", "value", "out"), "qkvo", strict=True)
    block = {
        "attention": {ours: dense(f"{layer}.attention.{short}_proj") for ours, short in parts},
        "norm1": norm(f"{layer}.layernorm_before"),
        "norm2": norm(f"{layer}.layernorm_after"),
        "mlp": {k: dense(f"{layer}.mlp.{k}") for k in ("fc1", "fc2")},
    }
    return {
        "embed": dense("decoder_embed"),
        "mask_token": weights["mask_token"],
        "block_0": block,
        "norm": norm("decoder_norm"),
        "pixels": dense("decoder_pred"),
    }
