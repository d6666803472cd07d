"""Without these, weights of ViT and CLIP towers could load and silently compute something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import vit

IMAGE = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
TINY = {"patch_size": 8, "width": 48, "depth": 2, "heads": 4, "mlp_dim": 96}

PARAMETERS = {
    # At 224 px, without pooler and head. Those of ViT, DeiT and CLIP are the published ones.
    "Ti/16": 5_524_416,
    "S/16": 21_665_664,
    "S/32": 22_493_952,
    "B/16": 85_798_656,
    "B/32": 87_455_232,
    "L/16": 303_301_632,
    "L/32": 305_510_400,
    "H/14": 630_764_800,
    "S/8": 21_670_272,
    "B/8": 85_807_872,
    "S/14": 21_619_584,
    "B/14": 85_706_496,
    "L/14": 303_178_752,
    "clip-B/16": 85_799_424,
    "clip-B/32": 87_456_000,
    "clip-L/14": 303_179_776,
    # DINOv2's published 22,056,576, 86,580,480 and 304,368,640 are at 518 px and with a mask token.
    "dinov2-S/14": 22_056_576 - (1 + 1369 - 256) * 384,
    "dinov2-B/14": 86_580_480 - (1 + 1369 - 256) * 768,
    "dinov2-L/14": 304_368_640 - (1 + 1369 - 256) * 1024,
    "dinov2-S/14-reg": 22_056_576 - (1 + 1369 - 256 - 4) * 384,
    "dinov2-B/14-reg": 86_580_480 - (1 + 1369 - 256 - 4) * 768,
    "dinov2-L/14-reg": 304_368_640 - (1 + 1369 - 256 - 4) * 1024,
    # With those of `siglip_text.VARIANTS`: see there. L is at 256 px and So400m at 384 px (27 x 27 patches).
    "siglip-B/16": 92_884_224,
    "siglip-L/16": 315_956_224 - (256 - 196) * 1024,
    "siglip-So400m/14": 428_225_600 - (729 - 256) * 1152,
    "test/8": 56_800,
    "test/16": 56_416,
    "quickstart/8": 1_315_200,
    "quickstart/16": 1_313_664,
}


def _shapes(encoder, size=32):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _apply(encoder, variables, image=IMAGE, keep_ids=None):
    return jax.jit(lambda v, x, k: encoder.apply(v, x, keep_ids=k))(variables, image, keep_ids)


def _vit_model(randomise, **options):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-12,
        attn_implementation="eager",
        **options,
    )
    return randomise(ViTModel(config))


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(vit.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(vit.Encoder(**vit.VARIANTS[name]), 224)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


def test_tower_and_each_block_equal_transformers_vit_model(randomise, from_torch):
    import torch

    theirs = _vit_model(randomise)
    ours = vit.Encoder(**TINY, pooling="pooler", layer_norm_eps=1e-12, last_attention=True)
    variables = from_torch(theirs, _shapes(ours), vit.TORCH_RULES)
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels, output_hidden_states=True, output_attentions=True)
    out = _apply(ours, variables, IMAGE)
    assert len(out["hidden"]) == 3
    np.testing.assert_allclose(out["hidden"][0], expected.hidden_states[0], atol=1e-5)
    np.testing.assert_allclose(out["hidden"][1], expected.hidden_states[1], atol=1e-5)
    tokens = np.concatenate([out["cls"][:, None], out["tokens"]], axis=1)
    np.testing.assert_allclose(tokens, expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    np.testing.assert_allclose(out["attention"], expected.attentions[-1], atol=1e-5)


def test_gradients_equal_transformers_vit_model(randomise, from_torch, assert_same_gradient):
    import torch

    theirs = _vit_model(
        randomise, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    ours = vit.Encoder(**TINY, pooling="pooler", layer_norm_eps=1e-12)
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, vit.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32)
    pixels = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
    out = theirs(pixels)
    loss = (
        out.pooler_output * torch.from_numpy(weight)
    ).sum() + out.last_hidden_state.square().mean()
    loss.backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, vit.TORCH_RULES)

    def objective(v):
        y = ours.apply(v, IMAGE, train=True)
        tokens = jnp.concatenate([y["cls"][:, None], y["tokens"]], axis=1)
        return jnp.sum(y["pooled"] * weight) + jnp.mean(tokens**2)

    value, grads = jax.jit(jax.value_and_grad(objective))(variables)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_same_gradient(grads, expected)


@pytest.mark.slow
def test_full_size_b16_equals_transformers_vit_model(randomise, from_torch):
    import torch
    from transformers import ViTConfig, ViTModel

    theirs = randomise(ViTModel(ViTConfig(attn_implementation="eager")))
    ours = vit.Encoder(**vit.VARIANTS["B/16"], pooling="pooler", layer_norm_eps=1e-12)
    variables = from_torch(theirs, _shapes(ours, 224), vit.TORCH_RULES)
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    out = _apply(ours, variables, image)
    np.testing.assert_allclose(out["tokens"], expected.last_hidden_state[:, 1:], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)


def test_clip_tower_equals_transformers_clip_vision_model(randomise, from_torch):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        attn_implementation="eager",
    )
    theirs = randomise(CLIPVisionModel(config))
    options = {k: v for k, v in vit.VARIANTS["clip-B/16"].items() if k not in TINY}
    ours = vit.Encoder(**TINY, **options)
    variables = from_torch(theirs, _shapes(ours), vit.CLIP_TORCH_RULES)
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels, output_hidden_states=True)
    out = _apply(ours, variables, IMAGE)
    np.testing.assert_allclose(out["hidden"][1], expected.hidden_states[1], atol=1e-5)
    np.testing.assert_allclose(out["hidden"][-1], expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)


def test_sincos_table_equals_the_released_m3ae_code(reference_dir):
    expected = np.load(reference_dir / "m3ae_sincos2d.npz")["pos"]
    np.testing.assert_allclose(vit.sincos_2d(16, (4, 4), cls=True), expected, atol=1e-12)
    np.testing.assert_allclose(vit.sincos_2d(16, (4, 4), cls=False), expected[1:], atol=1e-12)


def test_sincos_table_on_a_wide_grid_puts_columns_first():
    table = vit.sincos_2d(8, (2, 3), cls=False)
    np.testing.assert_allclose(table[5, :4], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)])
    np.testing.assert_allclose(table[5, 4:], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)])


def test_patches_are_cut_row_by_row_with_channels_last():
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = vit.image_patches(image, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], image[1, 2:4, 2:4].reshape(-1))


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("class_token", [True, False])
def test_kept_patches_carry_their_own_position_and_dropped_ones_have_no_influence(
    positions, class_token, fill
):
    encoder = vit.Encoder(
        **TINY, positions=positions, class_token=class_token, pooling="mean", patch_bias=True
    )
    variables = fill(_shapes(encoder))
    rng = np.random.default_rng(3)
    keep = np.stack([rng.permutation(16)[:5] for _ in range(3)]).astype(np.int32)
    first = int(class_token)
    everything = _apply(encoder, variables, IMAGE)["hidden"][0]
    kept = _apply(encoder, variables, IMAGE, keep)
    by_hand = np.take_along_axis(np.asarray(everything[:, first:]), keep[..., None], axis=1)
    np.testing.assert_allclose(kept["hidden"][0][:, first:], by_hand, atol=1e-6)
    np.testing.assert_array_equal(kept["hidden"][0][:, :first], everything[:, :first])
    assert kept["tokens"].shape == (3, 5, 48)

    other = IMAGE.copy()
    for row in range(3):
        for patch in set(range(16)) - set(keep[row].tolist()):
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            other[row, y : y + 8, x : x + 8] = 1e3
    changed = _apply(encoder, variables, other, keep)
    np.testing.assert_array_equal(changed["tokens"], kept["tokens"])


def test_keeping_all_patches_in_another_order_only_reorders_the_tokens(fill):
    encoder = vit.Encoder(**TINY)
    variables = fill(_shapes(encoder))
    order = np.tile(np.random.default_rng(0).permutation(16).astype(np.int32), (3, 1))
    plain = _apply(encoder, variables, IMAGE)
    shuffled = _apply(encoder, variables, IMAGE, order)
    np.testing.assert_allclose(shuffled["cls"], plain["cls"], atol=1e-5)
    np.testing.assert_allclose(shuffled["tokens"], plain["tokens"][:, order[0]], atol=1e-5)


def test_siglip_tower_equals_transformers_in_value_and_gradient(randomise, assert_same_gradient):
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        attn_implementation="eager",
    )
    theirs = randomise(SiglipVisionModel(config))
    ours = vit.Encoder(**TINY, class_token=False, pooling="map", activation="gelu_tanh")
    shapes = _shapes(ours)["params"]

    def converted(values):
        tensors = {name: value.detach().numpy() for name, value in values}
        return keys.from_torch(tensors, shapes, vit.SIGLIP_TORCH_RULES)

    params = converted(theirs.named_parameters())
    out = theirs(torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
    y = _apply(ours, {"params": params})
    assert "cls" not in y
    np.testing.assert_allclose(y["hidden"][1], out.hidden_states[1].detach(), atol=1e-5)
    np.testing.assert_allclose(y["tokens"], out.last_hidden_state.detach(), atol=1e-4)
    np.testing.assert_allclose(y["pooled"], out.pooler_output.detach(), atol=1e-4)
    weight = np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32)
    loss = (out.pooler_output * torch.from_numpy(weight)).sum()
    (loss + out.last_hidden_state.square().mean()).backward()
    expected = converted((name, value.grad) for name, value in theirs.named_parameters())

    def objective(p):
        y = ours.apply({"params": p}, IMAGE, train=True)
        return jnp.sum(y["pooled"] * weight) + jnp.mean(y["tokens"] ** 2)

    assert_same_gradient(jax.jit(jax.grad(objective))(params), expected)


def test_wrong_image_sizes_are_refused_with_both_sizes_and_a_remedy(fill):
    encoder = vit.Encoder(**TINY)
    variables = fill(_shapes(encoder))
    with pytest.raises(UserError, match=r"30x32 px .* patches of 8 px; set the image size"):
        encoder.apply(variables, IMAGE[:, :30])
    with pytest.raises(UserError, match=r"48x48 px .* 37 entries.* hold 17 .*32x32 px.*resample"):
        encoder.apply(variables, jnp.zeros((1, 48, 48, 3)))
    with pytest.raises(UserError, match="uint8"):
        encoder.apply(variables, jnp.zeros((1, 32, 32, 3), jnp.uint8))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"pooling": "max"}, "choose cls, mean, pooler or map"),
        ({"class_token": False}, "class_token=True"),
        ({"positions": "rotary"}, "learned or sincos"),
        ({"activation": "swish"}, "swish"),
        ({"remat": "half"}, "none, full or dots"),
        ({"heads": 5}, "divisible by heads=5"),
    ],
)
def test_unknown_settings_are_refused(field, message):
    encoder = vit.Encoder(**{**TINY, **field})
    with pytest.raises(UserError, match=message):
        _shapes(encoder)


def test_resampled_positions_fit_a_larger_image_and_equal_pytorch_bicubic():
    import torch

    table = np.random.default_rng(0).normal(size=(1, 17, 48)).astype(np.float32)
    ours = vit.resample_positions(table, (6, 6), cls=True)
    grid = torch.from_numpy(table[:, 1:].reshape(1, 4, 4, 48).transpose(0, 3, 1, 2).copy())
    theirs = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    np.testing.assert_array_equal(ours[:, :1], table[:, :1])
    # The kernel with antialiasing is a = -0.5 in both, as in PIL.
    expected = theirs.numpy().transpose(0, 2, 3, 1).reshape(1, 36, 48)
    np.testing.assert_allclose(ours[:, 1:], expected, atol=1e-4)
    with pytest.raises(UserError, match="not square"):
        vit.resample_positions(table[:, :14], (6, 6), cls=True)


def test_rematerialisation_changes_neither_value_nor_gradient(fill):
    options = {**TINY, "dropout": 0.2, "drop_path": 0.3}
    variables = fill(_shapes(vit.Encoder(**options)))

    def value(remat):
        encoder = vit.Encoder(**options, remat=remat)

        def loss(v):
            rngs = {"dropout": jax.random.key(5)}
            out = encoder.apply(v, IMAGE, train=True, rngs=rngs)
            return jnp.sum(out["pooled"] ** 2) + jnp.sum(out["tokens"] ** 3)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    plain = value("none")
    for remat in ("full", "dots"):
        for a, b in zip(plain, value(remat), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_close_to_float32_with_float32_parameters(fill):
    plain = vit.Encoder(**TINY)
    half = vit.Encoder(**TINY, dtype=jnp.bfloat16)
    variables = fill(_shapes(half))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = _apply(half, variables, IMAGE)
    assert out["tokens"].dtype == jnp.bfloat16
    expected = _apply(plain, variables, IMAGE)
    error = jnp.abs(out["tokens"].astype(jnp.float32) - expected["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15
