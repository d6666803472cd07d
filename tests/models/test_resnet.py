"""Without these, ResNet weights from PyTorch could load and compute something else."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import resnet

IMAGE = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
SMALL = {"depths": (1, 2, 1, 1), "stem_width": 8}

PARAMETERS = {
    # Without the classifier; torchvision's published counts less 513,000 or 2,049,000.
    "test": 128_392,
    "18": 11_176_512,
    "34": 21_284_672,
    "50": 23_508_032,
    "101": 42_500_160,
    "152": 58_143_808,
}


def _shapes(encoder, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _model(randomise, bottleneck):
    from transformers import ResNetConfig, ResNetModel

    factor = 4 if bottleneck else 1
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * factor * 2**i for i in range(4)],
        depths=[1, 2, 1, 1],
        layer_type="bottleneck" if bottleneck else "basic",
    )
    return randomise(ResNetModel(config))


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(resnet.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(resnet.Encoder(**resnet.VARIANTS[name]), 224)["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("bottleneck", [True, False])
def test_tower_equals_transformers_resnet_model(randomise, from_torch, bottleneck):
    import torch

    theirs = _model(randomise, bottleneck)
    ours = resnet.Encoder(**SMALL, bottleneck=bottleneck)
    variables = from_torch(theirs, _shapes(ours), resnet.TORCH_RULES)
    assert set(variables) == {"params", "batch_stats"}
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels, output_hidden_states=True)
    out = jax.jit(ours.apply)(variables, IMAGE)
    for mine, map_ in zip(out["hidden"], expected.hidden_states[1:], strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(
        out["pooled"], expected.pooler_output[..., 0, 0], atol=1e-4, rtol=1e-4
    )
    np.testing.assert_array_equal(out["tokens"].reshape(out["hidden"][3].shape), out["hidden"][3])


def test_training_pass_and_gradient_equal_transformers_resnet_model(
    randomise, from_torch, assert_same_gradient
):
    import torch

    theirs = _model(randomise, True).train()
    ours = resnet.Encoder(**SMALL, bottleneck=True)
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, resnet.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(2, 256)).astype(np.float32)
    out = theirs(torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy()))
    (out.pooler_output[..., 0, 0] * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        y, updates = ours.apply(
            {**variables, "params": params}, IMAGE, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y["pooled"] * weight), updates

    grads, updates = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    after = from_torch(theirs, shapes, resnet.TORCH_RULES)["batch_stats"]
    for a, b in zip(jax.tree.leaves(updates["batch_stats"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, resnet.TORCH_RULES)["params"]
    # Batches of two images in the last stage make the statistics, and so rounding, sensitive.
    assert_same_gradient(grads, expected, tolerance=2e-3)


def test_every_name_of_torchvision_resnet50_is_reached_once():
    shapes = _shapes(resnet.Encoder(**resnet.VARIANTS["50"]))
    keys = []
    for tree in shapes.values():
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join(key.key for key in path)
            rules = [r for r in resnet.TORCHVISION_RULES if re.fullmatch(r[0], name)]
            assert len(rules) == 1, (name, rules)
            keys.append(re.fullmatch(rules[0][0], name).expand(rules[0][1]))
    assert len(keys) == len(set(keys)) == 53 + 53 * 4
    wanted = {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_mean",
        "layer3.5.conv3.weight",
        "layer4.2.bn2.bias",
    }
    assert wanted <= set(keys)


def test_token_layer_chooses_the_grid_of_the_tokens():
    tokens = {}
    for layer in ("layer3", "layer4"):
        encoder = resnet.Encoder(**resnet.VARIANTS["50"], token_layer=layer)
        image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        out = jax.eval_shape(
            lambda x, e=encoder: e.init_with_output(jax.random.key(0), x)[0], image
        )
        tokens[layer] = out["tokens"].shape
        assert [x.shape[1:] for x in out["hidden"]] == [
            (56, 56, 256),
            (28, 28, 512),
            (14, 14, 1024),
            (7, 7, 2048),
        ]
        assert out["pooled"].shape == (2, 2048)
    assert tokens == {"layer3": (2, 196, 1024), "layer4": (2, 49, 2048)}


def test_frozen_statistics_stay_and_bfloat16_keeps_float32_variables(fill):
    encoder = resnet.Encoder(**SMALL, bottleneck=True, frozen_bn=True, dtype=jnp.bfloat16)
    variables = fill(_shapes(encoder))
    out, updates = jax.jit(lambda v: encoder.apply(v, IMAGE, train=True, mutable=["batch_stats"]))(
        variables
    )
    assert out["tokens"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for a, b in zip(
        jax.tree.leaves(variables["batch_stats"]),
        jax.tree.leaves(updates["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_rematerialisation_keeps_values_and_updates_statistics_once(fill):
    plain = resnet.Encoder(**SMALL, bottleneck=True)
    variables = fill(_shapes(plain))

    def run(encoder):
        def loss(params):
            out, updates = encoder.apply(
                {**variables, "params": params}, IMAGE, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(out["pooled"] ** 2), updates

        value, updates = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])[0]
        return [value, *jax.tree.leaves(updates)]

    for a, b in zip(run(plain), run(plain.clone(remat="full")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_a_convolution_cannot_do_is_refused():
    encoder = resnet.Encoder(**SMALL, bottleneck=True)
    with pytest.raises(UserError, match="use a ViT"):
        encoder.init(jax.random.key(0), IMAGE, keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 64, 64, 3), np.uint8))
    for field in ({"token_layer": "layer2"}, {"remat": "dots"}):
        with pytest.raises(UserError, match="unknown"):
            _shapes(encoder.clone(**field))
