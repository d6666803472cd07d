"""Without these, BioViL-T weights could compute something else, or a missing prior image leave traces."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import multi_image, resnet

RNG = np.random.default_rng(0)
IMAGE, PRIOR = RNG.normal(size=(2, 3, 64, 96, 3)).astype(np.float32)
PRIOR_MASK = np.array([1, 0, 1])
ENCODER = multi_image.Encoder(**multi_image.VARIANTS["test"])
BACKBONE = resnet.Encoder(**resnet.VARIANTS["test"])

PARAMETERS = {
    # torchvision's ResNet without classifier, plus by hand from the shapes of the released code:
    # C*D (1x1 convolution) + D (missing prior) + 2 D (types) + 3 (6 D^2 + 7 D) (blocks) + 2 D (last norm).
    "test": 128_392 + 4_096 + 16 + 32 + 3 * 1_648 + 32,
    "resnet18": 11_176_512 + 131_072 + 256 + 512 + 3 * 395_008 + 512,
    "resnet50": 23_508_032 + 524_288 + 256 + 512 + 3 * 395_008 + 512,
}


def _shapes(encoder, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


@pytest.fixture
def variables(fill):
    return fill(_shapes(ENCODER))


def _apply(variables, prior=PRIOR, mask=PRIOR_MASK, image=IMAGE):
    return jax.jit(ENCODER.apply)(variables, image, prior, mask)


def _comparison(width, heads):
    """The part after the ResNet as a PyTorch module with the released names, and its computation."""
    import torch

    def block():
        linear = torch.nn.Linear
        parts = {f"proj_{name}": linear(width, width, bias=False) for name in "qkv"}
        return torch.nn.ModuleDict(
            {
                "norm1": torch.nn.LayerNorm(width, eps=1e-6),
                "norm2": torch.nn.LayerNorm(width, eps=1e-6),
                "attn": torch.nn.ModuleDict({**parts, "proj": linear(width, width)}),
                "mlp": torch.nn.ModuleDict({f"fc{i}": linear(width, width) for i in (1, 2)}),
            }
        )

    model = torch.nn.Module()
    model.backbone_to_vit = torch.nn.Conv2d(256, width, 1, bias=False)
    model.missing_previous_emb = torch.nn.Parameter(torch.zeros(1, width, 1, 1))
    model.vit_pooler = torch.nn.Module()
    model.vit_pooler.type_embed = torch.nn.Parameter(torch.zeros(2, 1, width))
    model.vit_pooler.norm_post = torch.nn.LayerNorm(width, eps=1e-6)
    model.vit_pooler.blocks = torch.nn.ModuleList([block() for _ in range(3)])

    def attend(part, x):
        q, k, v = (part[f"proj_{n}"](x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return part["proj"](y.transpose(1, 2).flatten(2))

    def forward(current, prior):
        x, y = (model.backbone_to_vit(m) for m in (current, prior))
        table = torch.from_numpy(_positions(width, x.shape[2:])).float()
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in (x, y)], dim=1)
        places = torch.cat([table + model.vit_pooler.type_embed[i] for i in (0, 1)])
        for part in model.vit_pooler.blocks:
            tokens = tokens + attend(part["attn"], part["norm1"](tokens) + places)
            z = torch.nn.functional.gelu(part["mlp"]["fc1"](part["norm2"](tokens)))
            tokens = tokens + part["mlp"]["fc2"](z)
        difference = model.vit_pooler.norm_post(tokens)[:, : len(table)]
        return torch.cat([x.flatten(2).transpose(1, 2), difference], dim=-1)

    return model, forward


def _positions(width, grid):
    """DETR's table written out entry by entry."""
    table = np.zeros((grid[0], grid[1], width))
    half = width // 2
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(half):
                divisor = 10000 ** (2 * (i // 2) / half)
                wave = math.sin if i % 2 == 0 else math.cos
                y, x = (row + 1) / grid[0], (column + 1) / grid[1]
                table[row, column, i] = wave(2 * math.pi * y / divisor)
                table[row, column, half + i] = wave(2 * math.pi * x / divisor)
    return table.reshape(-1, width)


def test_every_variant_has_the_number_of_parameters_of_the_released_code():
    assert set(PARAMETERS) == set(multi_image.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(multi_image.Encoder(**multi_image.VARIANTS[name]), 224)["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


def test_positions_are_those_of_detr():
    for grid in ((2, 3), (3, 1)):
        ours = multi_image.sine_positions(8, grid)
        np.testing.assert_allclose(ours, _positions(8, grid), atol=1e-12)
    with pytest.raises(UserError, match="divisible by 4, not 6"):
        multi_image.sine_positions(6, (2, 2))


def test_names_are_those_of_the_released_weights_and_each_is_used_once(variables):
    tensors = {}
    for tree in variables.values():
        tensors |= keys.to_torch(tree, multi_image.TORCH_RULES)
    assert len(tensors) == len(jax.tree.leaves(variables))
    wanted = {
        "encoder.conv1.weight",
        "encoder.layer4.0.downsample.1.running_var",
        "backbone_to_vit.weight",
        "missing_previous_emb",
        "vit_pooler.type_embed",
        "vit_pooler.norm_post.bias",
        "vit_pooler.blocks.2.attn.proj_q.weight",
        "vit_pooler.blocks.2.attn.proj.bias",
        "vit_pooler.blocks.0.mlp.fc2.bias",
    }
    assert wanted <= set(tensors)


def test_comparison_and_gradients_equal_the_same_layers_in_pytorch(variables, assert_same_gradient):
    import torch

    model, forward = _comparison(16, 2)
    rest = {k: v for k, v in variables["params"].items() if k != "backbone"}
    tensors = keys.to_torch(rest, multi_image.TORCH_RULES)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    own = {name: tree["backbone"] for name, tree in variables.items()}
    maps = [
        np.asarray(BACKBONE.apply(own, x)["hidden"][3]).transpose(0, 3, 1, 2).copy()
        for x in (IMAGE, PRIOR)
    ]
    expected = forward(*map(torch.from_numpy, maps))
    out = _apply(variables, mask=None)
    assert out["tokens"].shape == (3, 6, 32)
    np.testing.assert_allclose(out["tokens"], expected.detach(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.detach().mean(1), atol=1e-4, rtol=1e-4)

    expected.pow(3).sum().backward()
    grads = {k: v.grad for k, v in model.named_parameters() if v.grad is not None}
    theirs = {k: v.numpy() for k, v in grads.items()}
    theirs["missing_previous_emb"] = np.zeros((1, 16, 1, 1), np.float32)

    def loss(rest):
        params = {**rest, "backbone": variables["params"]["backbone"]}
        return jnp.sum(ENCODER.apply({**variables, "params": params}, IMAGE, PRIOR)["tokens"] ** 3)

    ours = jax.jit(jax.grad(loss))(rest)
    assert_same_gradient(ours, keys.from_torch(theirs, rest, multi_image.TORCH_RULES), 1e-4)


def test_a_missing_prior_is_the_learned_vector_and_its_pixels_do_not_matter(variables):
    out = _apply(variables)
    missing = variables["params"]["missing_prior"].reshape(-1)
    np.testing.assert_array_equal(out["tokens"][1, :, 16:], np.broadcast_to(missing, (6, 16)))
    everyone = _apply(variables, mask=None)["tokens"]
    for row in (0, 2):
        np.testing.assert_allclose(out["tokens"][row], everyone[row], atol=1e-5)
    assert np.abs(everyone[1, :, 16:] - missing).max() > 0.1
    none = _apply(variables, prior=None, mask=None)["tokens"]
    np.testing.assert_array_equal(none[..., 16:], np.broadcast_to(missing, (3, 6, 16)))
    np.testing.assert_allclose(none[..., :16], everyone[..., :16], atol=1e-5)

    other = PRIOR.copy()
    other[1] = np.nan
    rngs = {"dropout": jax.random.key(0)}

    @jax.jit
    def train(prior):
        return ENCODER.apply(
            variables, IMAGE, prior, PRIOR_MASK, train=True, rngs=rngs, mutable=["batch_stats"]
        )

    for a, b in zip(jax.tree.leaves(train(PRIOR)), jax.tree.leaves(train(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_difference_depends_on_which_image_came_first(variables):
    forward = _apply(variables, mask=None)["tokens"]
    backward = _apply(variables, mask=None, image=PRIOR, prior=IMAGE)["tokens"]
    same = _apply(variables, mask=None, prior=IMAGE)["tokens"]
    np.testing.assert_allclose(same[..., :16], forward[..., :16], atol=1e-5)
    assert np.abs(forward[..., 16:] - backward[..., 16:]).max() > 1e-2
    assert np.abs(forward[..., 16:] - same[..., 16:]).max() > 1e-2


def test_bfloat16_and_recomputation_keep_values_and_float32_variables(variables):
    plain = _apply(variables)
    again = jax.jit(ENCODER.clone(remat="full").apply)(variables, IMAGE, PRIOR, PRIOR_MASK)
    np.testing.assert_allclose(again["tokens"], plain["tokens"], atol=1e-5)
    half = ENCODER.clone(dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(_shapes(half))} == {jnp.dtype("float32")}
    out = jax.jit(half.apply)(variables, IMAGE, PRIOR, PRIOR_MASK)
    assert out["tokens"].dtype == out["pooled"].dtype == jnp.bfloat16
    error = np.abs(np.asarray(out["tokens"], np.float32) - plain["tokens"])
    assert error.mean() < 0.03 * np.abs(plain["tokens"]).mean()


def test_unusable_inputs_are_refused(variables):
    with pytest.raises(UserError, match=r"\(3, 32, 96, 3\), but image \(3, 64, 96, 3\)"):
        ENCODER.apply(variables, IMAGE, PRIOR[:, :32])
    with pytest.raises(UserError, match="subset of the patches"):
        ENCODER.apply(variables, IMAGE, keep_ids=np.zeros((3, 2), np.int32))
