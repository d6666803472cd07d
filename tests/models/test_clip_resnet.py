"""Without these, OpenAI's CLIP ResNet weights could load and compute something else."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import clip_resnet, vit

SMALL = {"depths": (1, 2, 1, 1), "stem_width": 4, "output_dim": 24}

PARAMETERS = {
    "test": 334_652,
    # OpenAI's models have 102,007,137, 119,688,033 and 178,300,601 parameters. Less the text tower with its
    # projection and the logit scale: 63,690,241, 63,428,097 and 91,163,521. open_clip's
    # docs/model_profile.csv gives 38.32, 56.26 and 87.14 million.
    "RN50": 38_316_896,
    "RN101": 56_259_936,
    "RN50x4": 87_137_080,
}
SIZES = {"test": 64, "RN50": 224, "RN101": 224, "RN50x4": 288}


def _image(height=64, width=96):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, 3)).astype(np.float32)


def _shapes(encoder, height=64, width=96):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _block_class():
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.pool = nn.AvgPool2d(stride)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = None
            if stride > 1 or before != 4 * width:
                parts: dict[str, nn.Module] = OrderedDict(pool=nn.AvgPool2d(stride))
                parts["0"] = nn.Conv2d(before, 4 * width, 1, bias=False)
                parts["1"] = nn.BatchNorm2d(4 * width)
                self.downsample = nn.Sequential(parts)

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            y = self.pool(self.bn2(self.conv2(y)).relu())
            shortcut = x if self.downsample is None else self.downsample(x)
            return (self.bn3(self.conv3(y)) + shortcut).relu()

    return Block


def _pool_class():
    import torch
    from torch import nn

    class AttentionPool(nn.Module):
        def __init__(self, positions, width, out):
            super().__init__()
            self.positional_embedding = nn.Parameter(torch.zeros(positions + 1, width))
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj = nn.Linear(width, out)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
            q, k, v = (
                layer(x).unflatten(2, (-1, 64)).transpose(1, 2)
                for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            every = torch.softmax(q @ k.transpose(2, 3) / 8, dim=-1) @ v
            return self.c_proj(every.transpose(1, 2).flatten(2))[:, 0]

    return AttentionPool


def _model(depths, stem_width, output_dim, positions=6):
    """Image tower with the names of OpenAI's state dict, less `visual.`; forward: (maps, pooled)."""
    import safetensors.torch
    from torch import nn

    block, attention_pool = _block_class(), _pool_class()

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (3, stem_width // 2, stem_width // 2, stem_width)
            for i in range(1, 4):
                stride = 2 if i == 1 else 1
                conv = nn.Conv2d(widths[i - 1], widths[i], 3, stride=stride, padding=1, bias=False)
                self.add_module(f"conv{i}", conv)
                self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
            before = stem_width
            for i, depth in enumerate(depths):
                blocks = []
                for k in range(depth):
                    stride = 2 if i and not k else 1
                    blocks.append(block(before, stem_width * 2**i, stride))
                    before = 4 * stem_width * 2**i
                self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.attnpool = attention_pool(positions, before, output_dim)

        def forward(self, x):
            for i in range(1, 4):
                x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
            x, maps = nn.functional.avg_pool2d(x, 2), []
            for i in range(1, 5):
                x = getattr(self, f"layer{i}")(x)
                maps.append(x)
            return maps, self.attnpool(x)

        def save_pretrained(self, folder):
            safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    return Tower()


def _pixels(image):
    import torch

    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(clip_resnet.VARIANTS)
    for name, expected in PARAMETERS.items():
        encoder, size = clip_resnet.Encoder(**clip_resnet.VARIANTS[name]), SIZES[name]
        shapes = _shapes(encoder, size, size)["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("size", [(64, 96), (78, 111)])  # the second leaves rows and columns out
def test_tower_equals_a_pytorch_clip_resnet(randomise, from_torch, size):
    import torch

    theirs = randomise(_model(**SMALL))
    ours, image = clip_resnet.Encoder(**SMALL), _image(*size)
    variables = from_torch(theirs, _shapes(ours), clip_resnet.TORCH_RULES)
    assert set(variables) == {"params", "batch_stats"}
    with torch.no_grad():
        maps, pooled = theirs(_pixels(image))
    out = jax.jit(ours.apply)(variables, image)
    assert len(out["hidden"]) == 4
    for mine, map_ in zip(out["hidden"], maps, strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], pooled, atol=1e-4, rtol=1e-4)
    tokens = maps[3].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(out["tokens"], tokens, atol=1e-4, rtol=1e-4)


def test_training_pass_and_gradient_equal_a_pytorch_clip_resnet(
    randomise, from_torch, assert_same_gradient
):
    import torch

    theirs = randomise(_model(**SMALL)).train()
    ours, image = clip_resnet.Encoder(**SMALL), _image()
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, clip_resnet.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)
    (theirs(_pixels(image))[1] * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        y, updates = ours.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y["pooled"] * weight), updates

    grads, updates = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    after = from_torch(theirs, shapes, clip_resnet.TORCH_RULES)["batch_stats"]
    for a, b in zip(jax.tree.leaves(updates["batch_stats"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, clip_resnet.TORCH_RULES)["params"]
    # Batches of twelve positions in the last stage make the statistics, and so rounding, sensitive.
    assert_same_gradient(grads, expected, tolerance=2e-3)


def test_openai_state_dict_is_read_by_its_own_names(randomise):
    theirs = randomise(_model(**SMALL))
    state = {f"visual.{name}": x.numpy() for name, x in theirs.state_dict().items()}
    shapes = _shapes(clip_resnet.Encoder(**SMALL))
    statistics = r".*\.running_(mean|var)", r".*num_batches_tracked"
    params = keys.from_torch(
        {**state, "logit_scale": np.float32(1)},
        shapes["params"],
        clip_resnet.TORCH_RULES,
        prefix="visual.",
        ignore=statistics,
    )
    table = state["visual.attnpool.positional_embedding"]
    np.testing.assert_array_equal(params["pool"]["position_embed"][0], table)
    kernel = state["visual.layer2.0.downsample.0.weight"]
    ours = params["layer2_0"]["conv_downsample"]["kernel"]
    np.testing.assert_array_equal(ours, kernel.transpose(2, 3, 1, 0))
    assert set(keys.to_torch(params, clip_resnet.TORCH_RULES, prefix="visual.")) == {
        name for name in state if not name.endswith(("mean", "var", "tracked"))
    }


def test_position_table_resampled_for_another_image_size_fits(fill):
    encoder = clip_resnet.Encoder(**SMALL)
    variables = fill(_shapes(encoder, 64, 64))
    image = _image(64, 96)
    with pytest.raises(UserError, match="images of 64 px"):
        encoder.apply(variables, image)
    table = variables["params"]["pool"]["position_embed"]
    resampled = vit.resample_positions(table, (2, 3), cls=True)
    variables["params"]["pool"]["position_embed"] = resampled
    out: Any = encoder.apply(variables, image)
    assert out["pooled"].shape == (2, 24)


def test_frozen_statistics_stay_and_bfloat16_keeps_float32_variables(
    fill, assert_frozen_statistics
):
    encoder = clip_resnet.Encoder(**SMALL, frozen_bn=True, dtype=jnp.bfloat16)
    assert_frozen_statistics(encoder, fill(_shapes(encoder)), _image())


def test_rematerialisation_keeps_values_and_updates_statistics_once(
    fill, assert_same_when_rematerialised
):
    plain = clip_resnet.Encoder(**SMALL)
    assert_same_when_rematerialised(
        plain, fill(_shapes(plain)), _image(), gradient=False, atol=1e-5
    )


def test_what_a_convolution_cannot_do_is_refused():
    encoder = clip_resnet.Encoder(**SMALL)
    with pytest.raises(UserError, match="use a ViT"):
        encoder.init(jax.random.key(0), _image(), keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="at least 32 px"):
        _shapes(encoder, 31)
    for field, message in (
        ({"remat": "dots"}, "unknown"),
        ({"depths": (1, 1, 1)}, "4 stages"),
        ({"stem_width": 5}, "even number"),
    ):
        with pytest.raises(UserError, match=message):
            _shapes(encoder.clone(**field))
