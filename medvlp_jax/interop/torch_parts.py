"""Which of our modules the PyTorch package has, under which name, and what of them a manifest says."""

from __future__ import annotations

from typing import Any

from medvlp_jax.interop import exporting, hf_format
from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import (
    bert,
    biovil,
    causal_decoder,
    clip_resnet,
    clip_text,
    convnext,
    densenet,
    frames,
    fusion,
    heads,
    multi_image,
    prompt_tuning,
    resnet,
    resnet3d,
    siglip_text,
    swin,
    vit,
    vit3d,
)

_TRANSFORMER = ("width", "depth", "heads", "mlp_dim", "activation", "layer_norm_eps")
_VIT = (
    "patch_size",
    "class_token",
    "pooling",
    "layer_scale",
    "pre_layernorm",
    "qkv_bias",
    "patch_bias",
)
_WORDS = ("vocab_size", "max_positions")
_RESNET = ("depths", "bottleneck", "stem_width")

FIELDS: dict[type, tuple[str, tuple[str, ...]]] = {
    vit.Encoder: ("vit", (*_TRANSFORMER, *_VIT, "registers")),
    resnet.Encoder: ("resnet", (*_RESNET, "token_layer")),
    clip_resnet.Encoder: ("clip_resnet", ("depths", "stem_width", "output_dim")),
    densenet.Encoder: ("densenet", ("depths", "growth", "stem_width")),
    convnext.Encoder: (
        "convnext",
        ("hidden_sizes", "depths", "patch_size", "layer_scale", "layer_norm_eps"),
    ),
    swin.Encoder: ("swin", ("width", "depths", "heads", "window", "patch_size")),
    multi_image.Encoder: ("multi_image", (*_RESNET, "width", "depth", "heads")),
    frames.Encoder: ("frames", ("tower", "pooling", "heads")),
    resnet3d.Encoder: (
        "resnet3d",
        (
            *("depths", "stem_width", "stem_kernel", "stem_stride"),
            *("max_pool", "dilated", "shortcut"),
        ),
    ),
    vit3d.Encoder: ("vit3d", (*_TRANSFORMER, *_VIT)),
    prompt_tuning.VisualPrompts: ("prompt_tuning.VisualPrompts", ("tower", "length")),
    bert.Encoder: (
        "bert",
        (*_TRANSFORMER, *_WORDS, "token_types", "position_ids", "padding_idx", "pooling"),
    ),
    clip_text.Encoder: ("clip_text", (*_TRANSFORMER, *_WORDS, "eos_token_id")),
    siglip_text.Encoder: ("siglip_text", (*_TRANSFORMER, *_WORDS, "head_dim")),
    prompt_tuning.TextPrompts: ("prompt_tuning.TextPrompts", ("tower", "length")),
    causal_decoder.Decoder: (
        "causal_decoder.Decoder",
        (*_TRANSFORMER, *_WORDS, "cross_attention", "tied"),
    ),
    heads.Identity: ("heads.Identity", ()),
    heads.LinearProjection: ("heads.LinearProjection", ("features", "use_bias")),
    heads.MLPProjection: ("heads.MLPProjection", ("features", "hidden", "activation", "use_bias")),
    heads.BatchNormProjection: ("heads.BatchNormProjection", ("features", "hidden")),
    biovil.ImageProjection: ("biovil.ImageProjection", ("features",)),
    biovil.TextProjection: ("biovil.TextProjection", ("features",)),
    fusion.CoAttention: (
        "fusion.CoAttention",
        ("width", "layers", "heads", "mlp_dim", "layer_norm_eps"),
    ),
}
"""Our class -> its name in a config and in the manifest, and the fields that the PyTorch module reads."""

_VALUES = {
    "pooling": ("cls", "mean", "pooler", "map", "eos", "max", "attention"),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu"),
}
"""Field -> the values that the PyTorch module knows."""

_FLAT = (
    *(vit.Encoder, resnet.Encoder, clip_resnet.Encoder, densenet.Encoder, convnext.Encoder),
    *(swin.Encoder, multi_image.Encoder, prompt_tuning.VisualPrompts),
)
DEEP = (frames.Encoder, resnet3d.Encoder, vit3d.Encoder)
_TEXT = (bert.Encoder, clip_text.Encoder, siglip_text.Encoder)
_HEADS = (
    *(heads.LinearProjection, heads.MLPProjection, heads.BatchNormProjection, heads.Identity),
    *(biovil.ImageProjection, biovil.TextProjection, type(None)),
)

ALLOWED: dict[str, tuple[type, ...]] = {
    "image_encoder": (*_FLAT, *DEEP),
    "text_encoder": (*_TEXT, prompt_tuning.TextPrompts, type(None)),
    "image_projection": _HEADS,
    "text_projection": _HEADS,
    "fusion": (fusion.CoAttention, type(None)),
    "text_decoder": (causal_decoder.Decoder, type(None)),
    "context_projection": _HEADS,
}
"""Part of the model -> the classes that fit."""

_INSIDE: dict[type, tuple[type, ...]] = {
    frames.Encoder: _FLAT,
    prompt_tuning.VisualPrompts: (vit.Encoder,),
    prompt_tuning.TextPrompts: _TEXT,
}
"""Encoder around another one -> the classes that its `tower` may have."""


def problems(module: Any, allowed: tuple[type, ...], key: str) -> list[str]:
    """What of a module, and of a tower inside of it, the package does not know.

    Args:
        module: one of the parts of a model, or None.
        allowed: the classes that fit, e.g. of `ALLOWED`.
        key: config key of the module.
    """
    if not isinstance(module, allowed):
        name = type(module).__name__
        name = hf_format.kind(module) if name == "Encoder" else name
        known = ", ".join(FIELDS[kind][0] for kind in allowed if kind in FIELDS)
        return [f"{key} is {name}: only {known} fit; --to jax takes any encoder"]
    if module is None:
        return []
    # "positions" and "batch_norm" end up in the weights.
    found = exporting.unread(module, (*FIELDS[type(module)][1], "positions", "batch_norm"), key)
    for field, values in _VALUES.items():
        if getattr(module, field, values[0]) not in values:
            known = ", ".join(values)
            found.append(f"{key}.{field}={getattr(module, field)!r}: only {known} fit")
    if type(module) in _INSIDE:
        found += problems(module.tower, _INSIDE[type(module)], f"{key}.tower")
    return found


def describe(module: Any, image: ImageInput) -> dict[str, Any] | None:
    """Name and fields of a module; image towers also get the size of the images."""
    if module is None:
        return None
    name, fields = FIELDS[type(module)]
    found = {"name": name, **{field: getattr(module, field) for field in fields}}
    if "tower" in found:
        found["tower"] = describe(module.tower, image)
    if isinstance(module, (*_FLAT, *DEEP)):
        found |= {
            "image_size": image.size,
            "channels": image.channels,
            "frames": image.frames,
        }
    return found
