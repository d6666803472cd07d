"""One tower in the terms of transformers: what fits, config, weights, image processor.

Used for a tower by itself, `interop.hf_tower`, and for the halves of a dual encoder, `interop.hf`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, keys
from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import bert, clip_text, convnext, resnet, swin, vit

_SIZES = ("width", "depth", "heads", "mlp_dim", "activation", "layer_norm_eps")
_READ: dict[type, tuple[str, ...]] = {
    vit.Encoder: (
        *_SIZES,
        "patch_size",
        "class_token",
        "pooling",
        "positions",
        "registers",
        "layer_scale",
        "pre_layernorm",
        "qkv_bias",
        "patch_bias",
    ),
    convnext.Encoder: (
        "hidden_sizes",
        "depths",
        "patch_size",
        "layer_scale",
        "layer_norm_eps",
        "batch_norm",
    ),
    resnet.Encoder: ("depths", "bottleneck", "stem_width", "token_layer"),
    swin.Encoder: ("width", "depths", "heads", "window", "patch_size"),
    bert.Encoder: (
        *_SIZES,
        "vocab_size",
        "max_positions",
        "token_types",
        "position_ids",
        "padding_idx",
        "pooling",
    ),
    clip_text.Encoder: (*_SIZES, "vocab_size", "max_positions", "eos_token_id"),
}
"""Encoder -> the fields that the functions here write down."""

_LEGACY_EOS = (
    2  # the eos_token_id by which transformers knows CLIP configs that read at the highest id
)
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}

UNVERIFIED = (
    "not verified against PyTorch: install the torch extra (pip install 'medvlp_jax[torch]') "
    "and export again"
)
"""Note of an export on a machine without PyTorch."""


# ---------------------------------------------------------------------------------------------------
# What fits


def image_problems(encoder: Any, image: ImageInput) -> list[str]:
    """What keeps an image tower from being a model of transformers."""
    key = "model.image_encoder"
    if isinstance(encoder, convnext.Encoder | resnet.Encoder):
        multiple = encoder.stride if isinstance(encoder, convnext.Encoder) else 1
        return exporting.unread(encoder, _READ[type(encoder)], key) + size_problems(image, multiple)
    if isinstance(encoder, swin.Encoder):
        unread = exporting.unread(encoder, _READ[swin.Encoder], key)
        return unread + size_problems(image, encoder.patch_size)
    if not isinstance(encoder, vit.Encoder):
        return [
            f"{key}.name={kind(encoder)!r}: only 'vit', 'convnext', 'resnet' and 'swin' fit; --to torch "
            "takes any"
        ]
    problems = exporting.unread(encoder, _READ[vit.Encoder], key)
    if not encoder.class_token:
        problems.append(f"{key}.class_token=False: use True")
    if encoder.pre_layernorm and not encoder.qkv_bias:
        problems.append(f"{key}.qkv_bias=False: CLIPVisionModel has these biases; use True")
    if encoder.pre_layernorm and encoder.patch_bias:
        problems.append(f"{key}.patch_bias=True: CLIPVisionModel has no such bias; use False")
    if encoder.pre_layernorm and (encoder.layer_scale or encoder.registers):
        problems.append(f"{key}: CLIPVisionModel has no layer_scale and no registers; use 0")
    if encoder.layer_scale and encoder.mlp_dim % encoder.width:
        problems.append(f"{key}.mlp_dim={encoder.mlp_dim}: Dinov2Model needs a multiple of width")
    if encoder.registers and not encoder.layer_scale:
        problems.append(f"{key}.registers={encoder.registers}: only with layer_scale, as in DINOv2")
    return problems + size_problems(image, encoder.patch_size)


def text_problems(encoder: Any, tokenizer: Any) -> list[str]:
    """What keeps a text tower from being a model of transformers."""
    key = "model.text_encoder"
    if not isinstance(encoder, bert.Encoder | clip_text.Encoder):
        return [
            f"{key}.name={kind(encoder)!r}: only 'bert' and 'clip_text' fit; --to jax takes any"
        ]
    problems = exporting.unread(encoder, _READ[type(encoder)], key)
    if isinstance(encoder, clip_text.Encoder):
        if encoder.eos_token_id == _LEGACY_EOS:
            problems.append(f"{key}.eos_token_id=2: CLIPTextModel takes this for 'the highest id'")
        return problems
    return problems + padding_problems(encoder, tokenizer)


def kind(encoder: Any) -> str:
    """Name of an encoder in a config."""
    return type(encoder).__module__.rpartition(".")[2]


def size_problems(image: ImageInput, multiple: int) -> list[str]:
    """What is wrong with the images for an encoder that needs multiples of so many pixels."""
    problems = []
    if image.size % multiple:
        problems.append(f"data.image.size={image.size}: use a multiple of {multiple}")
    if image.channels != 3:
        problems.append(f"data.image.channels={image.channels}: use 3 (grey images are repeated)")
    return problems


def padding_problems(encoder: bert.Encoder, tokenizer: Any) -> list[str]:
    """RoBERTa's positions start after the pad id."""
    if encoder.position_ids != "roberta" or tokenizer.pad_token_id == encoder.padding_idx:
        return []
    return [
        f"model.text_encoder.padding_idx={encoder.padding_idx}: RoBERTa needs the tokenizer's pad id "
        f"{tokenizer.pad_token_id}"
    ]


# ---------------------------------------------------------------------------------------------------
# Weights and config


def image_tensors(
    encoder: Any,
    params: Mapping[str, Any],
    image: ImageInput,
    batch_stats: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Tensors of an image tower with the names of transformers' files, without prefix.

    What our ViT leaves out is filled in so that the result is the same: an identity pooler for the class
    token, zero biases, the fixed position table. A pooling by attention is left out.
    """
    if isinstance(encoder, convnext.Encoder):
        return keys.to_torch(params, convnext.TORCH_RULES)
    if isinstance(encoder, swin.Encoder):
        return keys.to_torch(params, swin.TORCH_RULES)
    params = {name: value for name, value in params.items() if name != "attention_pool"}
    if isinstance(encoder, resnet.Encoder):
        tensors = keys.to_torch(params, resnet.TORCH_RULES)
        running = keys.to_torch(batch_stats or {}, resnet.TORCH_RULES)
        # PyTorch counts the batches that a running mean has seen and wants the number in the file.
        means = [key.removesuffix("running_mean") for key in running if key.endswith("_mean")]
        counts = {f"{key}num_batches_tracked": np.asarray(0, np.int64) for key in means}
        return tensors | running | counts
    if encoder.layer_scale:
        # The mask token of the pretraining is part of the file and never read.
        fill = {"embeddings.mask_token": np.zeros((1, encoder.width), np.float32)}
        fill |= _vit_fill(encoder, image)
        own = {k: v for k, v in fill.items() if not k.startswith("pooler.")}
        return keys.to_torch(params, vit.DINOV2_TORCH_RULES) | own
    if encoder.pre_layernorm:
        tensors = keys.to_torch(params, vit.CLIP_TORCH_RULES)
        if encoder.positions == "sincos":
            tensors["embeddings.position_embedding.weight"] = _sincos(encoder, image)
        return tensors
    return keys.to_torch(params, vit.TORCH_RULES) | _vit_fill(encoder, image)


def _vit_fill(encoder: vit.Encoder, image: ImageInput) -> dict[str, np.ndarray]:
    fill: dict[str, np.ndarray] = {}
    if encoder.pooling != "pooler":
        fill["pooler.dense.weight"] = np.eye(encoder.width, dtype=np.float32)
        fill["pooler.dense.bias"] = np.zeros(encoder.width, np.float32)
    if not encoder.patch_bias:
        fill["embeddings.patch_embeddings.projection.bias"] = np.zeros(encoder.width, np.float32)
    if encoder.positions == "sincos":
        fill["embeddings.position_embeddings"] = _sincos(encoder, image)[None]
    return fill


def _sincos(encoder: vit.Encoder, image: ImageInput) -> np.ndarray:
    side = image.size // encoder.patch_size
    return vit.sincos_2d(encoder.width, (side, side), cls=True).astype(np.float32)


def text_tensors(encoder: Any, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of a text tower with the names of transformers' files, without prefix.

    A missing table of token types is filled with zeros, a missing pooler with the identity (its output is
    then tanh of the first token).
    """
    if isinstance(encoder, clip_text.Encoder):
        return keys.to_torch(params, clip_text.TORCH_RULES)
    own = {name: value for name, value in params.items() if name != "attention_pool"}
    tensors = keys.to_torch(own, bert.TORCH_RULES)
    if not encoder.token_types:
        zeros = np.zeros((1, encoder.width), np.float32)
        tensors["embeddings.token_type_embeddings.weight"] = zeros
    if encoder.pooling != "pooler":
        tensors["pooler.dense.weight"] = np.eye(encoder.width, dtype=np.float32)
        tensors["pooler.dense.bias"] = np.zeros(encoder.width, np.float32)
    return tensors


def image_config(encoder: Any, image: ImageInput) -> dict[str, Any]:
    """Fields of a ConvNextConfig, ResNetConfig, SwinConfig, Dinov2Config, CLIPVisionConfig or ViTConfig."""
    if isinstance(encoder, convnext.Encoder):
        return _convnext_config(encoder, image)
    if isinstance(encoder, resnet.Encoder):
        return _resnet_config(encoder, image)
    if isinstance(encoder, swin.Encoder):
        return _swin_config(encoder, image)
    if encoder.layer_scale:
        return _dinov2_config(encoder, image)
    if encoder.pre_layernorm:
        return _clip_config(encoder, image)
    return _vit_config(encoder, image)


def _convnext_config(encoder: convnext.Encoder, image: ImageInput) -> dict[str, Any]:
    return {
        "model_type": "convnext",
        "hidden_size": encoder.width,  # read by VisionTextDualEncoderModel, not by ConvNextModel
        "hidden_sizes": list(encoder.hidden_sizes),
        "depths": list(encoder.depths),
        "num_stages": len(encoder.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.layer_norm_eps,
        "layer_scale_init_value": encoder.layer_scale,
        "drop_path_rate": encoder.drop_path,
        **grid(encoder, image),
    }


def _resnet_config(encoder: resnet.Encoder, image: ImageInput) -> dict[str, Any]:
    factor = 4 if encoder.bottleneck else 1
    return {
        "model_type": "resnet",
        "embedding_size": encoder.stem_width,
        "hidden_sizes": [encoder.stem_width * 2**stage * factor for stage in range(4)],
        "depths": list(encoder.depths),
        "layer_type": "bottleneck" if encoder.bottleneck else "basic",
        "hidden_act": "relu",
        "num_channels": image.channels,
    }


def _swin_config(encoder: swin.Encoder, image: ImageInput) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": encoder.width,
        "depths": list(encoder.depths),
        "num_heads": list(encoder.heads),
        "window_size": encoder.window,
        "mlp_ratio": 4.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "drop_path_rate": encoder.drop_path,
        **grid(encoder, image),
    }


def sizes(encoder: Any) -> dict[str, Any]:
    """Fields that the configs of most transformers have."""
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": _ACTIVATIONS.get(encoder.activation, encoder.activation),
        "layer_norm_eps": encoder.layer_norm_eps,
    }


def grid(
    encoder: vit.Encoder | convnext.Encoder | swin.Encoder, image: ImageInput
) -> dict[str, Any]:
    """Fields of the configs of towers of patches that say how an image becomes patches."""
    return {
        "image_size": image.size,
        "patch_size": encoder.patch_size,
        "num_channels": image.channels,
    }


def _dinov2_config(encoder: vit.Encoder, image: ImageInput) -> dict[str, Any]:
    registers = {"num_register_tokens": encoder.registers} if encoder.registers else {}
    shape = {key: value for key, value in sizes(encoder).items() if key != "intermediate_size"}
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **shape,
        "mlp_ratio": encoder.mlp_dim // encoder.width,
        "layerscale_value": encoder.layer_scale,
        **grid(encoder, image),
        "qkv_bias": encoder.qkv_bias,
        **registers,
        **_dropout(encoder),
    }


def _clip_config(encoder: vit.Encoder, image: ImageInput) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        **sizes(encoder),
        **grid(encoder, image),
        "projection_dim": encoder.width,
    }


def _vit_config(encoder: vit.Encoder, image: ImageInput) -> dict[str, Any]:
    return {
        "model_type": "vit",
        **sizes(encoder),
        **grid(encoder, image),
        "qkv_bias": encoder.qkv_bias,
        "pooler_output_size": encoder.width,
        "pooler_act": "tanh" if encoder.pooling == "pooler" else "linear",
        **_dropout(encoder),
    }


def text_config(encoder: Any, tokenizer: Any) -> dict[str, Any]:
    """Fields of a BertConfig, RobertaConfig or CLIPTextConfig."""
    if isinstance(encoder, clip_text.Encoder):
        return _clip_text_config(encoder, tokenizer)
    roberta = encoder.position_ids == "roberta"
    return {
        "model_type": "roberta" if roberta else "bert",
        "vocab_size": encoder.vocab_size,
        **sizes(encoder),
        "max_position_embeddings": encoder.max_positions,
        "type_vocab_size": max(encoder.token_types, 1),
        "pad_token_id": encoder.padding_idx if roberta else tokenizer.pad_token_id,
        **_dropout(encoder),
    }


def _clip_text_config(encoder: clip_text.Encoder, tokenizer: Any) -> dict[str, Any]:
    end = _LEGACY_EOS if encoder.eos_token_id is None else encoder.eos_token_id
    return {
        "model_type": "clip_text_model",
        "vocab_size": encoder.vocab_size,
        **sizes(encoder),
        "max_position_embeddings": encoder.max_positions,
        "projection_dim": encoder.width,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _dropout(encoder: Any) -> dict[str, float]:
    own = encoder.attention_dropout
    return {
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.dropout if own is None else own,
    }


def image_processor(image: ImageInput) -> dict[str, Any]:
    """preprocessor_config.json: shorter side resized, centre cropped, as our evaluation does.

    CLIP's processor and not ViT's, because ViT's squeezes an image that is not square.
    """

    def per_channel(values: Sequence[float]) -> list[float]:
        return [float(v) for v in values] * (image.channels if len(values) == 1 else 1)

    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image.size},
        "resample": 2,  # bilinear with antialias, the nearest to our area averaging
        "do_center_crop": True,
        "crop_size": {"height": image.size, "width": image.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": per_channel(image.mean),
        "image_std": per_channel(image.std),
    }


# ---------------------------------------------------------------------------------------------------
# Reading back


def load_strictly(kind: Any, folder: pathlib.Path) -> Any:
    """The model of a folder in evaluation mode.

    Args:
        kind: class of transformers with `from_pretrained`.

    Raises:
        UserError: transformers finds tensors missing, left over or of another shape.
    """
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: Any = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    theirs, info = loaded
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise UserError(f"transformers cannot load the export: {wrong}; please report this")
    return theirs.eval()
