"""SigLIP's two towers in the terms of transformers' SiglipModel: what fits, config, weights.

Used by `interop.hf` and, for one tower, by `interop.hf_tower`. SiglipModel has no projections, and its logits
are scale * cosine + bias.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlp_jax.interop import exporting, hf_format, keys
from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import siglip_text, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

_SIZES = ("width", "depth", "heads", "mlp_dim", "activation", "layer_norm_eps")
_IMAGE = (*_SIZES, "patch_size", "class_token", "pooling", "positions", "patch_bias")
_TEXT = (*_SIZES, "vocab_size", "max_positions", "head_dim")


def problems(model: VisionLanguageModel, image: ImageInput) -> list[str]:
    """What keeps a dual encoder with `siglip_text` from being a SiglipModel."""
    return [*image_problems(model.image_encoder, image), *_other_problems(model)]


def is_tower(encoder: Any) -> bool:
    """Whether an encoder by itself is a SiglipVisionModel or SiglipTextModel."""
    pooled = isinstance(encoder, vit.Encoder) and encoder.pooling == "map"
    return isinstance(encoder, siglip_text.Encoder) or (pooled and not encoder.class_token)


def image_problems(encoder: Any, image: ImageInput) -> list[str]:
    """What keeps an image tower from being a SiglipVisionModel."""
    key = "model.image_encoder"
    if not isinstance(encoder, vit.Encoder):
        return [
            f"{key}.name={hf_format.kind(encoder)!r}: only 'vit' of a siglip-* variant goes with "
            "'siglip_text'"
        ]
    found = exporting.unread(encoder, _IMAGE, key)
    if encoder.class_token:
        found.append(f"{key}.class_token=True: 'siglip_text' goes with a siglip-* variant only")
    if encoder.pooling != "map":
        found.append(f"{key}.pooling={encoder.pooling!r}: use 'map'")
    return found + hf_format.size_problems(image, encoder.patch_size)


def text_problems(encoder: siglip_text.Encoder) -> list[str]:
    """What keeps a text tower from being a SiglipTextModel."""
    return exporting.unread(encoder, _TEXT, "model.text_encoder")


def _other_problems(model: VisionLanguageModel) -> list[str]:
    text: Any = model.text_encoder
    found = text_problems(text)
    if model.image_pooling != "encoder":
        found.append(f"model.image_pooling={model.image_pooling!r}: use 'encoder'")
    if model.text_pooling != "encoder":
        found.append(f"model.text_pooling={model.text_pooling!r}: use 'encoder'")
    if model.fusion is not None:
        found.append("model.fusion: fusion encoders do not export; use fusion=None")
    for side in ("image", "text"):
        if getattr(model, f"{side}_projection") is not None:
            found.append(f"model.{side}_projection: SiglipModel has none; use None")
    widths = getattr(model.image_encoder, "width", None), text.head_dim or text.width
    if not found and widths[0] != widths[1]:
        found.append(
            f"image and text embeddings have {widths[0]} and {widths[1]} features: set "
            f"model.text_encoder.head_dim={widths[0]}"
        )
    return found


def weights(
    model: VisionLanguageModel, params: Mapping[str, Any], image: ImageInput
) -> dict[str, np.ndarray]:
    """All tensors but the logit scale and bias; a fixed position table and zero bias are filled in."""
    vision = image_tensors(model.image_encoder, params["image_encoder"], image)
    text = text_tensors(params["text_encoder"])
    return {f"vision_model.{key}": value for key, value in vision.items()} | {
        f"text_model.{key}": value for key, value in text.items()
    }


def image_tensors(
    encoder: Any, params: Mapping[str, Any], image: ImageInput
) -> dict[str, np.ndarray]:
    """Tensors of the image tower, without prefix."""
    vision = keys.to_torch(params, vit.SIGLIP_TORCH_RULES)
    if encoder.positions == "sincos":
        side = image.size // encoder.patch_size
        table = vit.sincos_2d(encoder.width, (side, side), cls=False).astype(np.float32)
        vision["embeddings.position_embedding.weight"] = table
    if not encoder.patch_bias:
        vision["embeddings.patch_embedding.bias"] = np.zeros(encoder.width, np.float32)
    return vision


def text_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of the text tower, without prefix."""
    return keys.to_torch(params, siglip_text.TORCH_RULES)


def logits(logit_scale: float, logit_bias: float | None) -> dict[str, np.ndarray]:
    """The tensors of the logits: the logarithm of the scale, and the bias, 0 if none was trained."""
    return {
        "logit_scale": np.asarray([math.log(logit_scale)], np.float32),
        "logit_bias": np.asarray([logit_bias or 0.0], np.float32),
    }


def config(model: VisionLanguageModel, image: ImageInput, tokenizer: Any) -> dict[str, Any]:
    """config.json of a SiglipModel."""
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "exported_by": "medvlp_jax",
        "dtype": "float32",
        "vision_config": image_config(model.image_encoder, image),
        "text_config": text_config(model.text_encoder, tokenizer),
        "transformers_version": importlib.metadata.version("transformers"),
    }


def image_config(encoder: Any, image: ImageInput) -> dict[str, Any]:
    """Fields of a SiglipVisionConfig."""
    return {**_sizes(encoder, "siglip_vision_model"), **hf_format.grid(encoder, image)}


def text_config(encoder: Any, tokenizer: Any) -> dict[str, Any]:
    """Fields of a SiglipTextConfig."""
    return {
        **_sizes(encoder, "siglip_text_model"),
        "vocab_size": encoder.vocab_size,
        "max_position_embeddings": encoder.max_positions,
        "projection_size": encoder.head_dim or encoder.width,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _sizes(encoder: Any, model_type: str) -> dict[str, Any]:
    own = encoder.attention_dropout
    return {
        "model_type": model_type,
        **hf_format.sizes(encoder),
        "attention_dropout": encoder.dropout if own is None else own,
    }


def drop_mask(folder: pathlib.Path) -> None:
    """Lets the tokenizer of a folder give no attention mask: SigLIP looks at the padding."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    exporting.dump(path, {**settings, "model_input_names": ["input_ids"]})
