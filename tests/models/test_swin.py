"""Without these, Swin weights from PyTorch could load and compute something else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import swin

SMALL = {"width": 8, "depths": (2, 2), "heads": (2, 4), "window": 3}

PARAMETERS = {
    # Those of transformers.SwinModel: the published counts less the classifier.
    "test": 35_612,
    "T": 27_519_354,
    "S": 48_837_258,
    "B": 86_743_224,
}


def _image(height, width):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, 3)).astype(np.float32)


def _shapes(encoder, height=24, width=24):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _model(randomise, **fields):
    from transformers import SwinConfig, SwinModel

    small = {**SMALL, **fields}
    config = SwinConfig(
        image_size=24,
        embed_dim=small["width"],
        depths=list(small["depths"]),
        num_heads=list(small["heads"]),
        window_size=small["window"],
        attn_implementation="eager",
    )
    return randomise(SwinModel(config))


def _pixels(image):
    import torch

    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(swin.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(swin.Encoder(**swin.VARIANTS[name]), 224, 224)["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((48, 24), [(12, 6), (6, 3)]),  # whole windows; the last map is one window wide
        ((52, 40), [(13, 10), (7, 5)]),  # windows and the halved grid are padded
    ],
)
def test_tower_equals_transformers_swin_model(randomise, from_torch, size, grids):
    import torch

    theirs = _model(randomise)
    ours = swin.Encoder(**SMALL)
    variables = from_torch(theirs, _shapes(ours), swin.TORCH_RULES)
    image = _image(*size)
    with torch.no_grad():
        expected = theirs(
            _pixels(image),
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
    out = jax.jit(ours.apply)(variables, image)
    assert [x.shape[1:3] for x in out["hidden"]] == grids
    for mine, map_ in zip(out["hidden"], expected.reshaped_hidden_states[1:], strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["tokens"], expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4, rtol=1e-4)


def test_one_block_with_shifted_windows_equals_transformers(randomise, from_torch):
    import torch

    theirs = _model(randomise)
    params = from_torch(theirs, _shapes(swin.Encoder(**SMALL)), swin.TORCH_RULES)["params"]
    x = np.random.default_rng(1).normal(size=(2, 7, 8, 8)).astype(np.float32)
    with torch.no_grad():
        layer = theirs.encoder.layers[0].blocks[1]
        expected, _ = layer(torch.from_numpy(x.reshape(2, 56, 8)), (7, 8))
    block = swin.Block(heads=2, window=3, shift=1)
    out = jax.jit(block.apply, static_argnums=2)({"params": params["stage_0_block_1"]}, x, False)
    np.testing.assert_allclose(out, expected.numpy().reshape(2, 7, 8, 8), atol=1e-5, rtol=1e-5)


def test_gradient_equals_transformers_swin_model(randomise, from_torch, assert_same_gradient):
    import torch

    theirs = _model(randomise)
    ours = swin.Encoder(**SMALL)
    shapes, image = _shapes(ours), _image(36, 28)
    params = from_torch(theirs, shapes, swin.TORCH_RULES)["params"]
    weight = np.random.default_rng(2).normal(size=(2, 16)).astype(np.float32)
    out = theirs(_pixels(image))
    (out.pooler_output * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        out: Any = ours.apply({"params": params}, image)
        return jnp.sum(out["pooled"] * weight)

    grads = jax.jit(jax.grad(objective))(params)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, swin.TORCH_RULES)["params"]
    assert_same_gradient(grads, expected, tolerance=1e-4)


def test_windows_are_undone():
    x = np.arange(2 * 6 * 9 * 2).reshape(2, 6, 9, 2)
    cut = swin.windows(x, 3)
    assert cut.shape == (2, 6, 9, 2)
    np.testing.assert_array_equal(cut[0, 1], x[0, :3, 3:6].reshape(9, 2))
    np.testing.assert_array_equal(swin.unwindow(cut, 3, 6, 9), x)


def test_shifted_windows_reach_across_windows_but_not_across_the_seam():
    block = swin.Block(heads=1, window=2, shift=1)
    x = np.random.default_rng(3).normal(size=(1, 4, 4, 4)).astype(np.float32)
    variables = block.init(jax.random.key(0), x, False)

    def reached(row, column):
        moved = x.copy()
        moved[0, row, column] = -moved[0, row, column]
        before, after = (
            block.apply(variables, x, False),
            block.apply(variables, moved, False),
        )
        return {tuple(p) for p in np.argwhere(np.abs(after - before)[0].max(-1) > 1e-6).tolist()}

    assert reached(1, 1) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert reached(0, 0) == {(0, 0)}
    assert reached(0, 3) == {(0, 3)}


def test_rematerialisation_keeps_values_and_gradients(fill):
    plain, image = swin.Encoder(**SMALL), _image(24, 24)
    variables = fill(_shapes(plain))

    def run(encoder):
        def loss(v):
            return jnp.sum(encoder.apply(v, image, train=True)["tokens"] ** 2)

        value, grads = jax.jit(jax.value_and_grad(loss))(variables)
        return [value, *jax.tree.leaves(grads)]

    for a, b in zip(run(plain), run(plain.clone(remat="full")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_float32_parameters_and_drop_path_needs_its_rng(fill):
    encoder = swin.Encoder(**SMALL, dtype=jnp.bfloat16, drop_path=0.5)
    variables, image = fill(_shapes(encoder)), _image(24, 24)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    plain: Any = encoder.apply(variables, image)
    assert {x.dtype for x in jax.tree.leaves(plain)} == {jnp.dtype("bfloat16")}
    rngs = {"dropout": jax.random.key(1)}
    dropped: Any = encoder.apply(variables, image, train=True, rngs=rngs)
    assert not np.array_equal(plain["tokens"], dropped["tokens"])


def test_what_windows_cannot_do_is_refused():
    encoder = swin.Encoder(**SMALL)
    with pytest.raises(UserError, match="use a ViT"):
        encoder.init(jax.random.key(0), _image(24, 24), keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 24, 24, 3), np.uint8))
    with pytest.raises(UserError, match="multiple of 4"):
        _shapes(encoder, 26)
    with pytest.raises(UserError, match="at least 24 px"):
        _shapes(encoder, 16)
    for field, message in (
        ({"heads": (2,)}, "as many"),
        ({"heads": (3, 4)}, "not divisible"),
        ({"remat": "dots"}, "unknown"),
    ):
        with pytest.raises(UserError, match=message):
            _shapes(encoder.clone(**field))
