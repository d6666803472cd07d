"""Without these, DenseNet weights from PyTorch could load and compute something else."""

from __future__ import annotations

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import densenet

SMALL = {"depths": (2, 3, 1), "growth": 4, "stem_width": 8}

PARAMETERS = {
    # Without the classifier: torchvision's published 7,978,856 and 14,149,480 less 1,025,000 and 1,665,000.
    "test": 15_216,
    "121": 6_953_856,
    "169": 12_484_480,
}


def _image(channels=3, height=36, width=56):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, channels)).astype(np.float32)


def _shapes(encoder, size=64, channels=3):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), image)


def _model(depths, growth, stem_width, channels=3):
    """DenseNet with torchvision's state-dict names; its forward gives each block's map and the last one."""
    import safetensors.torch
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1 = nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x):
            y = self.conv1(self.norm1(x).relu())
            return torch.cat([x, self.conv2(self.norm2(y).relu())], dim=1)

    class DenseNet(nn.Module):
        def __init__(self):
            super().__init__()
            parts: dict[str, nn.Module] = OrderedDict()
            parts["conv0"] = nn.Conv2d(channels, stem_width, 7, stride=2, padding=3, bias=False)
            parts["norm0"] = nn.BatchNorm2d(stem_width)
            parts["relu0"] = nn.ReLU()
            parts["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
            width = stem_width
            for i, depth in enumerate(depths, start=1):
                block = OrderedDict()
                for k in range(1, depth + 1):
                    block[f"denselayer{k}"] = Layer(width)
                    width += growth
                parts[f"denseblock{i}"] = nn.Sequential(block)
                if i < len(depths):
                    inner = OrderedDict(norm=nn.BatchNorm2d(width), relu=nn.ReLU())
                    inner["conv"] = nn.Conv2d(width, width // 2, 1, bias=False)
                    inner["pool"] = nn.AvgPool2d(2, stride=2)
                    parts[f"transition{i}"] = nn.Sequential(inner)
                    width //= 2
            parts["norm5"] = nn.BatchNorm2d(width)
            self.features = nn.Sequential(parts)

        def forward(self, x):
            maps = []
            for name, part in self.features.named_children():
                x = part(x)
                if name.startswith("denseblock"):
                    maps.append(x)
            return maps, x.relu()

        def save_pretrained(self, folder):
            safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    return DenseNet()


def _pixels(image):
    import torch

    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(densenet.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(densenet.Encoder(**densenet.VARIANTS[name]))["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("channels", [1, 3])
def test_tower_equals_a_pytorch_densenet(randomise, from_torch, channels):
    import torch

    theirs = randomise(_model(**SMALL, channels=channels))
    ours, image = densenet.Encoder(**SMALL), _image(channels)
    variables = from_torch(theirs, _shapes(ours, channels=channels), densenet.TORCH_RULES)
    assert set(variables) == {"params", "batch_stats"}
    with torch.no_grad():
        maps, last = theirs(_pixels(image))
    out = jax.jit(ours.apply)(variables, image)
    assert [x.shape[1:3] for x in out["hidden"]] == [(9, 14), (4, 7), (2, 3)]
    for mine, map_ in zip(out["hidden"], maps, strict=True):
        wanted = map_.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, wanted, atol=1e-4, rtol=1e-4)
    tokens = last.flatten(2).transpose(1, 2)
    np.testing.assert_allclose(out["tokens"], tokens, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out["pooled"], last.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


def test_training_pass_and_gradient_equal_a_pytorch_densenet(
    randomise, from_torch, assert_same_gradient
):
    import torch

    theirs = randomise(_model(**SMALL)).train()
    ours, image = densenet.Encoder(**SMALL), _image()
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, densenet.TORCH_RULES)
    last = theirs(_pixels(image))[1]
    weight = np.random.default_rng(1).normal(size=(2, last.shape[1])).astype(np.float32)
    (last.mean(dim=(2, 3)) * torch.from_numpy(weight)).sum().backward()

    def objective(params):
        y, updates = ours.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y["pooled"] * weight), updates

    grads, updates = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    after = from_torch(theirs, shapes, densenet.TORCH_RULES)["batch_stats"]
    for a, b in zip(jax.tree.leaves(updates["batch_stats"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, densenet.TORCH_RULES)["params"]
    assert_same_gradient(grads, expected, tolerance=1e-4)


def test_every_tensor_of_a_full_densenet121_is_named():
    shapes = _shapes(densenet.Encoder(**densenet.VARIANTS["121"]))
    names = []
    for tree in shapes.values():
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
        names += keys.to_torch(zeros, densenet.TORCH_RULES)
    # torchvision's state dict has 727 entries: these, 121 `num_batches_tracked` and 2 of the classifier.
    assert len(names) == len(set(names)) == 604
    wanted = {
        "features.conv0.weight",
        "features.norm0.running_var",
        "features.denseblock3.denselayer24.conv2.weight",
        "features.transition3.norm.running_mean",
        "features.norm5.bias",
    }
    assert wanted <= set(names)


def test_frozen_statistics_stay_and_bfloat16_keeps_float32_variables(
    fill, assert_frozen_statistics
):
    encoder = densenet.Encoder(**SMALL, frozen_bn=True, dtype=jnp.bfloat16)
    assert_frozen_statistics(encoder, fill(_shapes(encoder)), _image())


def test_rematerialisation_keeps_values_and_updates_statistics_once(
    fill, assert_same_when_rematerialised
):
    plain = densenet.Encoder(**SMALL)
    assert_same_when_rematerialised(plain, fill(_shapes(plain)), _image())


def test_what_a_convolution_cannot_do_is_refused():
    encoder = densenet.Encoder(**SMALL)
    with pytest.raises(UserError, match="use a ViT"):
        encoder.init(jax.random.key(0), _image(), keep_ids=np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match="normalised floats"):
        encoder.init(jax.random.key(0), np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="at least 16 px"):
        _shapes(encoder, 15)
    with pytest.raises(UserError, match="unknown"):
        _shapes(encoder.clone(remat="dots"))
