"""Without these, ConvNeXt weights from PyTorch could load and compute something else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import convnext

IMAGE = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype(np.float32)
SMALL = {"hidden_sizes": (8, 12, 20), "depths": (1, 2, 1), "patch_size": 4, "layer_scale": 0.7}

PARAMETERS = {
    # Those of transformers.ConvNextModel: the published counts less the classifier.
    "test": 18_320,
    "quickstart": 593_904,
    "T": 27_820_128,
    "S": 49_454_688,
    "B": 87_566_464,
    "L": 196_230_336,
}


def _shapes(encoder, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _model(randomise):
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(
        hidden_sizes=list(SMALL["hidden_sizes"]),
        depths=list(SMALL["depths"]),
        num_stages=3,
        patch_size=4,
    )
    model = randomise(ConvNextModel(config))
    assert sum(p.numel() for p in model.parameters()) == sum(
        x.size for x in jax.tree.leaves(_shapes(convnext.Encoder(**SMALL)))
    )
    return model


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(convnext.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(convnext.Encoder(**convnext.VARIANTS[name]))["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


def test_tower_equals_transformers_convnext_model(randomise, from_torch):
    import torch

    theirs = _model(randomise)
    ours = convnext.Encoder(**SMALL)
    variables = from_torch(theirs, _shapes(ours), convnext.TORCH_RULES)
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels, output_hidden_states=True)
    out = jax.jit(ours.apply)(variables, IMAGE)
    for mine, map_ in zip(out["hidden"], expected.hidden_states[1:], strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4, rtol=1e-4)
    last = expected.last_hidden_state.flatten(2).transpose(1, 2)
    np.testing.assert_allclose(out["tokens"], last, atol=1e-4, rtol=1e-4)


def test_gradient_equals_transformers_convnext_model(randomise, from_torch, assert_same_gradient):
    import torch

    theirs = _model(randomise)
    ours = convnext.Encoder(**SMALL)
    shapes = _shapes(ours)
    params = from_torch(theirs, shapes, convnext.TORCH_RULES)["params"]
    weight = np.random.default_rng(1).normal(size=(2, 20)).astype(np.float32)
    out = theirs(torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy()))
    (out.pooler_output * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        out: Any = ours.apply({"params": params}, IMAGE)
        return jnp.sum(out["pooled"] * weight)

    grads = jax.jit(jax.grad(objective))(params)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, convnext.TORCH_RULES)["params"]
    assert_same_gradient(grads, expected, tolerance=1e-4)


@pytest.mark.parametrize(
    "shape", [(2, 9, 5, 4), (3, 2, 3, 2)]
)  # the second is smaller than the window
def test_depthwise_by_shifts_equals_the_grouped_convolution(shape):
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(2, *shape)).astype(np.float32)
    kernel = rng.normal(size=(7, 7, 1, shape[-1])).astype(np.float32)

    def run(convolve):
        value = jax.jit(lambda x, k: jnp.sum(convolve(x, k) * weight))
        return convolve(x, kernel), *jax.grad(value, argnums=(0, 1))(x, kernel)

    pairs = zip(run(convnext.depthwise_by_shifts), run(convnext.depthwise_grouped), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_drop_path_needs_its_rng(fill):
    encoder = convnext.Encoder(**SMALL, dtype=jnp.bfloat16, drop_path=0.5)
    variables = fill(_shapes(encoder))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    plain: Any = encoder.apply(variables, IMAGE)
    assert {x.dtype for x in jax.tree.leaves(plain)} == {jnp.dtype("bfloat16")}
    rngs = {"dropout": jax.random.key(1)}
    dropped: Any = encoder.apply(variables, IMAGE, train=True, rngs=rngs)
    assert not np.array_equal(plain["tokens"], dropped["tokens"])


def test_what_a_convolution_cannot_do_is_refused():
    encoder = convnext.Encoder(**SMALL)
    with pytest.raises(UserError, match="use a ViT"):
        encoder.init(jax.random.key(0), IMAGE, keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="multiples of 16"):
        _shapes(encoder, 40)
    with pytest.raises(UserError, match="as many"):
        _shapes(encoder.clone(depths=(1, 2)))
