"""Without these, a volume could be cut into the wrong boxes, or a tower start from a wrongly inflated one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import pretrained
from medvlp_jax.models import vit, vit3d

SIZES = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
VOLUME = np.random.default_rng(0).normal(size=(2, 4, 16, 24, 3)).astype(np.float32)

PARAMETERS = {
    # Blocks and norm are those of the 2-D towers; kernel and positions of 6 x 6 x 6 boxes by hand.
    "S/16": 21_665_664 - 768 * 384 - 197 * 384 + 16**3 * 384 + 217 * 384,
    "B/16": 85_798_656 - 768 * 768 - 197 * 768 + 16**3 * 768 + 217 * 768,
    # transformers.VivitModel without pooler, 32 frames of 224 px; 88.9 M with the classifier of 400 classes
    # in table 2 of arXiv 2103.15691.
    "vivit-B/16x2": 88_646_400,
    "test": 2 * 12_704 + 64 + 4 * 64 * 32 + 32 + 32 + 9 * 32,
}


def _shapes(encoder, *size):
    image = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _apply(encoder, params, image, keep_ids=None):
    run = jax.jit(lambda p, x, k: encoder.apply({"params": p}, x, keep_ids=k))
    return run(params, image, keep_ids)


def test_every_variant_has_the_right_number_of_parameters():
    sizes = {"vivit-B/16x2": (32, 224, 224, 3), "test": (8, 16, 16, 1)}
    assert set(PARAMETERS) == set(vit3d.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(vit3d.Encoder(**vit3d.VARIANTS[name]), *sizes.get(name, (96, 96, 96, 1)))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


def _vivit(randomise):
    from transformers import VivitConfig, VivitModel

    config = VivitConfig(
        image_size=16,
        num_frames=4,
        tubelet_size=[2, 8, 8],
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        attn_implementation="eager",
    )
    return randomise(VivitModel(config, add_pooling_layer=False))


def test_tower_and_gradient_equal_transformers_vivit_model(
    randomise, tmp_path, from_torch, assert_same_gradient
):
    import torch

    theirs = _vivit(randomise)
    video = VOLUME[:, :, :, :16]
    ours = vit3d.Encoder(**SIZES, patch_size=(2, 8, 8), activation="gelu_tanh")
    shapes = _shapes(ours, *video.shape[1:])
    variables = from_torch(theirs, shapes, vit3d.TORCH_RULES)
    pixels = torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy())
    expected = theirs(pixels, output_hidden_states=True)
    out = _apply(ours, variables["params"], video)
    np.testing.assert_allclose(out["hidden"][0], expected.hidden_states[0].detach(), atol=1e-5)
    last = expected.last_hidden_state
    np.testing.assert_allclose(out["cls"], last[:, 0].detach(), atol=1e-4)
    np.testing.assert_allclose(out["tokens"], last[:, 1:].detach(), atol=1e-4)
    np.testing.assert_array_equal(out["pooled"], out["cls"])
    (last[:, 0].pow(3).sum() + last[:, 1:].square().mean()).backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    gradient = from_torch(theirs, shapes, vit3d.TORCH_RULES)

    def objective(v):
        y = ours.apply(v, video, train=True)
        return jnp.sum(y["cls"] ** 3) + jnp.mean(y["tokens"] ** 2)

    assert_same_gradient(jax.jit(jax.grad(objective))(variables), gradient)


def test_vivit_checkpoint_loads(randomise, tmp_path):
    theirs = _vivit(randomise)
    theirs.save_pretrained(tmp_path)
    ours = vit3d.Encoder(**SIZES, patch_size=(2, 8, 8), activation="gelu_tanh")
    loaded = pretrained.load(ours, dict(_shapes(ours, 4, 16, 16, 3)), str(tmp_path))
    assert not loaded.random
    assert not loaded.outside
    np.testing.assert_array_equal(
        loaded.variables["params"]["norm"]["bias"], theirs.layernorm.bias.detach()
    )


def test_boxes_are_cut_slab_by_slab_with_channels_last():
    patches = vit3d.volume_patches(VOLUME, (2, 8, 4))
    assert patches.shape == (2, 2 * 2 * 6, 2 * 8 * 4 * 3)
    box = VOLUME[1, 2:4, 8:16, 20:24]  # the last one
    np.testing.assert_array_equal(patches[1, -1], box.reshape(-1))
    np.testing.assert_array_equal(patches[0, 1], VOLUME[0, :2, :8, 4:8].reshape(-1))


@pytest.mark.parametrize("kernel", ["mean", "centre"])
@pytest.mark.parametrize(("slabs", "class_token"), [(1, True), (1, False), (3, False)])
def test_inflated_tower_on_equal_slices_equals_the_tower_for_images(
    fill, kernel, slabs, class_token
):
    options = {**SIZES, "class_token": class_token, "pooling": "cls" if class_token else "mean"}
    flat = vit.Encoder(**options, patch_size=8)
    params = fill(_shapes(flat, 16, 16, 3))["params"]
    image = VOLUME[:, 0, :, :16]
    expected = _apply(flat, params, image)
    deep = vit3d.Encoder(**options, patch_size=(2, 8, 8))
    inflated = vit3d.inflate(
        params, patch_depth=2, slabs=slabs, kernel=kernel, class_token=class_token
    )
    volume = np.repeat(image[:, None], 2 * slabs, axis=1)
    wanted = _shapes(deep, *volume.shape[1:])["params"]
    assert jax.tree.map(np.shape, inflated) == jax.tree.map(lambda x: x.shape, wanted)
    out = _apply(deep, inflated, volume)
    np.testing.assert_allclose(out["tokens"], np.tile(expected["tokens"], (1, slabs, 1)), atol=1e-5)
    np.testing.assert_allclose(out["pooled"], expected["pooled"], atol=1e-5)


def test_central_kernel_sees_one_slice_and_mean_kernel_all(fill):
    flat = vit.Encoder(**SIZES, patch_size=8)
    params = fill(_shapes(flat, 16, 16, 3))["params"]
    volume = VOLUME[:1, :, :, :16].copy()
    changed = volume.copy()
    changed[:, 0] += 1
    deep = vit3d.Encoder(**SIZES, patch_size=(4, 8, 8))
    for kernel, same in (("centre", True), ("mean", False)):
        inflated = vit3d.inflate(params, patch_depth=4, slabs=1, kernel=kernel)
        before, after = (_apply(deep, inflated, x)["pooled"] for x in (volume, changed))
        assert np.allclose(before, after) == same
    middle = _apply(flat, params, volume[:, 2])
    inflated = vit3d.inflate(params, patch_depth=4, slabs=1, kernel="centre")
    np.testing.assert_allclose(
        _apply(deep, inflated, volume)["pooled"], middle["pooled"], atol=1e-5
    )


def test_kept_boxes_know_where_they_were(fill):
    encoder = vit3d.Encoder(**SIZES, patch_size=(2, 8, 8), pre_layernorm=True, layer_scale=0.5)
    params = fill(_shapes(encoder, *VOLUME.shape[1:]))["params"]
    order = np.stack([np.random.default_rng(i).permutation(12) for i in range(2)])
    out = _apply(encoder, params, VOLUME)
    kept = _apply(encoder, params, VOLUME, order)
    np.testing.assert_allclose(kept["pooled"], out["pooled"], atol=1e-5)
    rows = np.take_along_axis(np.asarray(out["tokens"]), order[..., None], axis=1)
    np.testing.assert_allclose(kept["tokens"], rows, atol=1e-5)
    assert _apply(encoder, params, VOLUME, order[:, :5])["tokens"].shape == (2, 5, 48)


def test_dropout_is_active_in_training_only_and_rematerialisation_changes_nothing(fill):
    plain = vit3d.Encoder(**SIZES, patch_size=(4, 8, 8), dropout=0.2, drop_path=0.3)
    variables = fill(_shapes(plain, *VOLUME.shape[1:]))

    def value(encoder, seed):
        def loss(v):
            out = encoder.apply(v, VOLUME, train=True, rngs={"dropout": jax.random.key(seed)})
            return jnp.sum(out["pooled"] ** 2)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    first = value(plain, 0)
    for a, b in zip(first, value(plain.clone(remat="dots"), 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert abs(first[0] - value(plain, 1)[0]) > 1e-3
    still = _apply(plain, variables["params"], VOLUME)["pooled"]
    assert abs(first[0] - jnp.sum(still**2)) > 1e-3


def test_bfloat16_stays_close_to_float32_with_float32_parameters(fill):
    plain = vit3d.Encoder(**SIZES, patch_size=(4, 8, 8))
    half = plain.clone(dtype=jnp.bfloat16)
    params = fill(_shapes(half, *VOLUME.shape[1:]))["params"]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = _apply(half, params, VOLUME)
    assert out["tokens"].dtype == jnp.bfloat16
    error = jnp.abs(out["tokens"].astype(jnp.float32) - _apply(plain, params, VOLUME)["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"pooling": "max"}, "choose cls or mean"),
        ({"class_token": False}, "class_token=True"),
        ({"patch_size": (3, 8, 8)}, "4x16x24 voxels cannot be cut into boxes of 3x8x8"),
    ],
)
def test_unusable_settings_are_refused(field, message):
    with pytest.raises(UserError, match=message):
        _shapes(vit3d.Encoder(**{**SIZES, "patch_size": (4, 8, 8), **field}), *VOLUME.shape[1:])


def test_wrong_inputs_and_towers_are_refused(fill):
    encoder = vit3d.Encoder(**SIZES, patch_size=(4, 8, 8))
    variables = fill(_shapes(encoder, *VOLUME.shape[1:]))
    with pytest.raises(UserError, match=r"volumes \[B,D,H,W,C\]"):
        encoder.apply(variables, VOLUME[:, 0])
    with pytest.raises(UserError, match="uint8"):
        encoder.apply(variables, VOLUME.astype(np.uint8))
    with pytest.raises(UserError, match="table of 5 entries, but the parameters hold 7"):
        encoder.apply(variables, VOLUME[:, :, :, :16])
    flat = fill(_shapes(vit.Encoder(**SIZES, patch_size=8, pooling="pooler"), 16, 16, 3))["params"]
    with pytest.raises(UserError, match="has no pooler"):
        vit3d.inflate(flat, patch_depth=2, slabs=1)
    del flat["pooler"]
    with pytest.raises(UserError, match="choose mean or centre"):
        vit3d.inflate(flat, patch_depth=2, slabs=1, kernel="max")
    del flat["position_embed"]
    with pytest.raises(UserError, match="no learned position table"):
        vit3d.inflate(flat, patch_depth=2, slabs=1)
