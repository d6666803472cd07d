"""Without these, 3-D ResNet weights from PyTorch could load and compute something else."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import resnet3d

VIDEO = {key: x for key, x in resnet3d.VARIANTS["video-18"].items() if key != "depths"}
SMALL = {"depths": (1, 2, 1, 1), "stem_width": 4}
FORMS = {
    "med3d": (SMALL, resnet3d.TORCH_RULES),
    "video": ({**SMALL, **VIDEO}, resnet3d.VIDEO_TORCH_RULES),
}

PARAMETERS = {
    "test": (1, 224_424),
    # MedicalNet's readme: 32.99 and 63.31 million, running statistics (7,808 and 15,232) included.
    "18": (1, 32_986_176),
    "34": (1, 63_295_808),
    # torchvision's published 33,371,472 less the classifier's 205,200.
    "video-18": (3, 33_166_272),
}


def _volume():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 13, 34, 40, 1)).astype(np.float32)


def _shapes(encoder, channels=1):
    image = jax.ShapeDtypeStruct((1, 8, 32, 32, channels), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _conv(before, width, kernel, stride=(1, 1, 1), dilation=1):
    from torch import nn

    padding = tuple(dilation * (k // 2) for k in kernel)
    return nn.Conv3d(before, width, kernel, stride, padding, dilation, bias=False)


def _block_class(video):
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before, width, stride, dilation):
            super().__init__()
            self.stride, self.new = stride, width - before
            for i, inputs, step in ((1, before, stride), (2, width, 1)):
                conv = _conv(inputs, width, (3, 3, 3), (step,) * 3, dilation)
                norm = nn.BatchNorm3d(width)
                if video:
                    setattr(self, f"conv{i}", nn.Sequential(conv, norm))
                else:
                    setattr(self, f"conv{i}", conv)
                    setattr(self, f"bn{i}", norm)
            if video and self.new:
                shortcut = _conv(before, width, (1, 1, 1), (stride,) * 3)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(width))

        def forward(self, x):
            if video:
                y = self.conv2(self.conv1(x).relu())
                return (y + (self.downsample(x) if self.new else x)).relu()
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            if self.new:
                x = nn.functional.avg_pool3d(x, kernel_size=1, stride=self.stride)
                x = torch.cat([x, x.new_zeros(x.shape[0], self.new, *x.shape[2:])], dim=1)
            return (y + x).relu()

    return Block


def _model(form):
    """3-D ResNet named as MedicalNet ("med3d") or torchvision ("video") do; forward gives the four maps."""
    import safetensors.torch
    from torch import nn

    video, width = form == "video", SMALL["stem_width"]
    block = _block_class(video)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            kernel, stride = ((3, 7, 7), (1, 2, 2)) if video else ((7, 7, 7), (2, 2, 2))
            names = ("0", "1") if video else ("conv1", "bn1")
            layers = (_conv(1, width, kernel, stride), nn.BatchNorm3d(width))
            stem = OrderedDict(zip(names, layers, strict=True))
            if video:
                self.stem = nn.Sequential(stem)
            else:
                self.conv1, self.bn1 = stem.values()
            before = width
            steps = [(1, 1), (2, 1), (2, 1), (2, 1)] if video else [(1, 1), (2, 1), (1, 2), (1, 4)]
            for i, depth in enumerate(SMALL["depths"]):
                blocks, after = [], width * 2**i
                for k in range(depth):
                    blocks.append(block(before, after, 1 if k else steps[i][0], steps[i][1]))
                    before = after
                self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

        def forward(self, x):
            x = (self.stem(x) if video else self.bn1(self.conv1(x))).relu()
            if not video:
                x = nn.functional.max_pool3d(x, 3, stride=2, padding=1)
            maps = []
            for i in range(1, 5):
                x = getattr(self, f"layer{i}")(x)
                maps.append(x)
            return maps

        def save_pretrained(self, folder):
            safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    return ResNet()


def _voxels(volume):
    import torch

    return torch.from_numpy(volume.transpose(0, 4, 1, 2, 3).copy())


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(resnet3d.VARIANTS)
    for name, (channels, expected) in PARAMETERS.items():
        encoder = resnet3d.Encoder(**resnet3d.VARIANTS[name])
        shapes = _shapes(encoder, channels)["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("form", FORMS)
def test_tower_equals_a_pytorch_3d_resnet(randomise, from_torch, form):
    import torch

    fields, rules = FORMS[form]
    theirs = randomise(_model(form))
    ours, volume = resnet3d.Encoder(**fields), _volume()
    variables = from_torch(theirs, _shapes(ours), rules)
    assert set(variables) == {"params", "batch_stats"}
    with torch.no_grad():
        maps = theirs(_voxels(volume))
    out = jax.jit(ours.apply)(variables, volume)
    assert len(out["hidden"]) == 4
    for mine, map_ in zip(out["hidden"], maps, strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 4, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    tokens = maps[3].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(out["tokens"], tokens, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], tokens.mean(dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_training_pass_and_gradient_equal_a_pytorch_3d_resnet(
    randomise, from_torch, assert_same_gradient, form
):
    import torch

    fields, rules = FORMS[form]
    theirs = randomise(_model(form)).train()
    ours, volume = resnet3d.Encoder(**fields), _volume()
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, rules)
    weight = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    pooled = theirs(_voxels(volume))[3].mean(dim=(2, 3, 4))
    (pooled * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        y, updates = ours.apply(
            {**variables, "params": params}, volume, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y["pooled"] * weight), updates

    grads, updates = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    after = from_torch(theirs, shapes, rules)["batch_stats"]
    for a, b in zip(jax.tree.leaves(updates["batch_stats"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, rules)["params"]
    assert_same_gradient(grads, expected, tolerance=1e-4)


def test_medicalnet_state_dict_is_read_and_written_by_its_own_names(randomise):
    theirs = randomise(_model("med3d"))
    state = {f"module.{name}": x.numpy() for name, x in theirs.state_dict().items()}
    shapes = _shapes(resnet3d.Encoder(**SMALL))
    ignore = r".*running_(mean|var)", r".*num_batches_tracked"
    params = keys.from_torch(
        state, shapes["params"], resnet3d.TORCH_RULES, prefix="module.", ignore=ignore
    )
    weight = state["module.layer2.1.conv2.weight"]
    kernel = params["layer2_1"]["conv2"]["kernel"]
    assert kernel[0, 1, 2, 3, 4] == weight[4, 3, 0, 1, 2]
    back = keys.to_torch(params, resnet3d.TORCH_RULES, prefix="module.")
    assert set(back) == {f"module.{name}" for name, _ in theirs.named_parameters()}
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])


def test_dilation_keeps_the_grid_of_unibrain():
    volume = jax.ShapeDtypeStruct((1, 24, 224, 224, 1), jnp.float32)
    encoder = resnet3d.Encoder(**resnet3d.VARIANTS["34"])
    out: Any = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], volume)
    assert out["hidden"][3].shape == (1, 3, 28, 28, 512)
    assert out["tokens"].shape == (1, 3 * 28 * 28, 512)
    assert out["pooled"].shape == (1, 512)


def test_frozen_statistics_stay_and_bfloat16_keeps_float32_variables(
    fill, assert_frozen_statistics
):
    encoder = resnet3d.Encoder(**SMALL, frozen_bn=True, dtype=jnp.bfloat16)
    assert_frozen_statistics(encoder, fill(_shapes(encoder)), _volume())


def test_rematerialisation_keeps_values_and_updates_statistics_once(
    fill, assert_same_when_rematerialised
):
    plain = resnet3d.Encoder(**SMALL)
    assert_same_when_rematerialised(plain, fill(_shapes(plain)), _volume())


def test_what_a_convolution_cannot_do_is_refused():
    encoder = resnet3d.Encoder(**SMALL)
    with pytest.raises(UserError, match="masks the image"):
        encoder.init(jax.random.key(0), _volume(), keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 8, 16, 16, 1), np.uint8))
    with pytest.raises(UserError, match="wants volumes"):
        encoder.init(jax.random.key(0), np.zeros((2, 64, 64, 3), np.float32))
    for field, message in (
        ({"remat": "dots"}, "unknown"),
        ({"shortcut": "identity"}, "unknown"),
        ({"depths": (1, 1)}, "4 stages"),
    ):
        with pytest.raises(UserError, match=message):
            _shapes(encoder.clone(**field))
