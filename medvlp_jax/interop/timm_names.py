"""timm's architectures: which name a tower gets, and which constructor arguments differ from that name's.

An architecture of timm is a name and the arguments that its constructor gets there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import convnext, densenet, resnet, swin, vit

EPS = 1e-6  # of the LayerNorms of timm's ViT and ConvNeXt
CLIP_EPS = 1e-5  # of its vit_*_clip_*, an option that no constructor argument sets


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """A name of timm, and what its constructor gets there where that is not the default."""

    name: str
    size: int
    arguments: Mapping[str, Any]


def _vits(
    pattern: str, size: int, patches: Mapping[str, Sequence[int]], **more: Any
) -> list[_Architecture]:
    """The names of one kind of ViT: pattern with {size} and {patch}, size -> patch sizes."""
    sizes = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
        "so400m": (1152, 27, 16),
    }
    found = []
    for name, all_patches in patches.items():
        width, depth, heads = sizes[name]
        ratio = {"mlp_ratio": 3.7362} if name == "so400m" else {}
        for patch in all_patches:
            arguments = {
                "patch_size": patch,
                "embed_dim": width,
                "depth": depth,
                "num_heads": heads,
            }
            full = pattern.format(size=name, patch=patch)
            found.append(_Architecture(full, size, {**arguments, **ratio, **more}))
    return found


# The first of each list is the one that other sizes are described against.
_PLAIN = _vits(
    "vit_{size}_patch{patch}_224",
    224,
    {
        "base": (16, 32, 8),
        "tiny": (16,),
        "small": (8, 16, 32),
        "large": (14, 16, 32),
        "huge": (14,),
    },
)
_CLIP = [
    *_vits(
        "vit_{size}_patch{patch}_clip_224", 224, {"base": (16, 32), "large": (14,)}, pre_norm=True
    ),
    *_vits(
        "vit_{size}_patch{patch}_clip_quickgelu_224",
        224,
        {"base": (16, 32), "large": (14,)},
        pre_norm=True,
        act_layer="quick_gelu",
    ),
]
_DINO_SIZES = {"base": (14,), "small": (14,), "large": (14,)}
_DINOV2 = _vits("vit_{size}_patch{patch}_dinov2", 518, _DINO_SIZES, init_values=1e-5)
_DINOV2_REGISTERS = _vits(
    "vit_{size}_patch{patch}_reg4_dinov2",
    518,
    _DINO_SIZES,
    init_values=1e-5,
    reg_tokens=4,
    no_embed_class=True,
)
# Versions of timm differ in the activation of these, so it is always written.
_SIGLIP_OPTIONS = {"class_token": False, "global_pool": "map", "act_layer": None}
_SIGLIP = [
    *_vits(
        "vit_{size}_patch{patch}_siglip_224",
        224,
        {"base": (16,), "so400m": (14,)},
        **_SIGLIP_OPTIONS,
    ),
    *_vits("vit_{size}_patch{patch}_siglip_256", 256, {"large": (16,)}, **_SIGLIP_OPTIONS),
]
_SWIN = [
    _Architecture(
        f"swin_{name}_patch4_window7_224",
        224,
        {"embed_dim": width, "depths": depths, "num_heads": heads},
    )
    for name, width, depths, heads in (
        ("tiny", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        ("small", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        ("base", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    )
]
_CONVNEXT = [
    _Architecture(f"convnext_{name}", 224, {"depths": depths, "dims": dims})
    for name, depths, dims in (
        ("tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
        ("small", (3, 3, 27, 3), (96, 192, 384, 768)),
        ("base", (3, 3, 27, 3), (128, 256, 512, 1024)),
        ("large", (3, 3, 27, 3), (192, 384, 768, 1536)),
    )
]
_RESNET_BASIC = [
    _Architecture("resnet18", 224, {"layers": (2, 2, 2, 2)}),
    _Architecture("resnet34", 224, {"layers": (3, 4, 6, 3)}),
]
_RESNET = [
    _Architecture("resnet50", 224, {"layers": (3, 4, 6, 3)}),
    _Architecture("resnet101", 224, {"layers": (3, 4, 23, 3)}),
    _Architecture("resnet152", 224, {"layers": (3, 8, 36, 3)}),
]
_DENSENET = [
    _Architecture("densenet121", 224, {"block_config": (6, 12, 24, 16)}),
    _Architecture("densenet169", 224, {"block_config": (6, 12, 32, 32)}),
]

_DEFAULTS: dict[type, dict[str, Any]] = {
    vit.Encoder: {
        "patch_size": 16,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "init_values": None,
        "class_token": True,
        "no_embed_class": False,
        "reg_tokens": 0,
        "pre_norm": False,
        "fc_norm": None,
        "global_pool": "token",
        "act_layer": "gelu",
    },
    swin.Encoder: {"patch_size": 4, "window_size": 7},
    convnext.Encoder: {"patch_size": 4},
    resnet.Encoder: {},
    densenet.Encoder: {"growth_rate": 32},
}
"""Encoder -> arguments of timm's constructor where an architecture does not say otherwise."""


def architecture(encoder: Any, image: ImageInput) -> tuple[str, dict[str, Any]]:
    """Name of timm's architecture and the arguments that turn it into this tower.

    Args:
        encoder: from `as_timm`.
        image: its side is `img_size` where a tower is made for one size.
    """
    wanted = _arguments(encoder, image)
    options = [(a, _differing(wanted, a, encoder)) for a in _family(encoder)]
    best, different = min(options, key=lambda option: len(option[1]))
    return best.name, different


def _family(encoder: Any) -> list[_Architecture]:
    if isinstance(encoder, swin.Encoder):
        return _SWIN
    if isinstance(encoder, convnext.Encoder):
        return _CONVNEXT
    if isinstance(encoder, resnet.Encoder):
        return _RESNET if encoder.bottleneck else _RESNET_BASIC
    if isinstance(encoder, densenet.Encoder):
        return _DENSENET
    if encoder.layer_norm_eps == CLIP_EPS:
        return _CLIP
    if encoder.pooling == "map":
        return _SIGLIP
    if encoder.layer_scale:
        return _DINOV2_REGISTERS if encoder.registers else _DINOV2
    return _PLAIN


def _differing(wanted: Mapping[str, Any], base: _Architecture, encoder: Any) -> dict[str, Any]:
    have = {"img_size": base.size, **_DEFAULTS[type(encoder)], **base.arguments}
    different = {}
    for name, value in wanted.items():
        same = have.get(name) == value
        if name == "mlp_ratio":
            same = int(have[name] * encoder.width) == encoder.mlp_dim
        elif name == "init_values":  # an initial value: that there is one is what counts
            same = bool(have[name]) == bool(value)
        if not same:
            different[name] = value
    return different


def _arguments(encoder: Any, image: ImageInput) -> dict[str, Any]:
    """All arguments of timm's constructor that this tower decides."""
    if isinstance(encoder, vit.Encoder):
        return _vit_arguments(encoder, image)
    if isinstance(encoder, swin.Encoder):
        return {
            "img_size": image.size,
            "patch_size": encoder.patch_size,
            "embed_dim": encoder.width,
            "depths": tuple(encoder.depths),
            "num_heads": tuple(encoder.heads),
            "window_size": encoder.window,
        }
    if isinstance(encoder, convnext.Encoder):
        sizes = {"depths": tuple(encoder.depths), "dims": tuple(encoder.hidden_sizes)}
        return {**sizes, "patch_size": encoder.patch_size}
    if isinstance(encoder, densenet.Encoder):
        return {"block_config": tuple(encoder.depths), "growth_rate": encoder.growth}
    return {"layers": tuple(encoder.depths)}


def _vit_arguments(encoder: vit.Encoder, image: ImageInput) -> dict[str, Any]:
    ratio = encoder.mlp_dim / encoder.width
    if int(ratio * encoder.width) != encoder.mlp_dim:  # timm rounds the product down
        ratio = (encoder.mlp_dim + 0.5) / encoder.width
    mean = encoder.pooling == "mean"
    return {
        "img_size": image.size,
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "mlp_ratio": ratio,
        "qkv_bias": encoder.qkv_bias,
        "init_values": encoder.layer_scale or None,
        "class_token": encoder.class_token,
        "no_embed_class": encoder.registers > 0,
        "reg_tokens": encoder.registers,
        "pre_norm": encoder.pre_layernorm,
        # timm would move the last norm behind the mean.
        "fc_norm": False if mean else None,
        "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[encoder.pooling],
        "act_layer": encoder.activation,
    }
