"""Export of a dual encoder to a folder that `transformers.VisionTextDualEncoderModel` loads.

The folder is written without PyTorch and without transformers. Where PyTorch is installed the export loads
the folder again and compares embeddings before it puts the folder in place.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import bert, convnext, heads, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

TOLERANCE = 1e-4
"""Largest difference of an entry of the embeddings (unit vectors) that an export may have."""

USAGE = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel

folder = "."  # this folder
model = VisionTextDualEncoderModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)

texts = ["There is a pleural effusion.", "No pleural effusion."]
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
image = Image.open("image.png").convert("RGB")
inputs["pixel_values"] = processor(image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    print(model(**inputs).logits_per_image.softmax(dim=-1))
```"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How images reach the encoder: side in pixels, channels, and mean and std in units of [0, 1]."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did.

    Attributes:
        folder: where it is.
        verified: whether PyTorch loaded it and gave the same embeddings.
        difference: largest difference of an embedding's entry; NaN when not verified.
        notes: what the user should know, one sentence each.
    """

    folder: pathlib.Path
    verified: bool
    difference: float
    notes: tuple[str, ...]


def export(
    model: VisionLanguageModel,
    params: Mapping[str, Any],
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    image: ImageInput,
    max_length: int,
    logit_scale: float,
    card: str,
    batch_stats: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes config, weights, tokenizer, image processor and model card.

    Args:
        model: a dual encoder of `vit.Encoder` or `convnext.Encoder` and `bert.Encoder`.
        params: its parameters (`variables["params"]["model"]`).
        tokenizer: from `data.text`.
        folder: made; an earlier export there is replaced once the new one is verified.
        image: see `ImageInput`.
        max_length: tokens per text.
        logit_scale: factor of the cosine, already exponentiated.
        card: text of README.md, from `model_card`.
        batch_stats: the model's running statistics, if its image encoder has BatchNorm; they are folded into
            the weights.

    Raises:
        UserError: the model does not fit (names each part and the config key to change), the folder holds
            other files, or PyTorch gives other embeddings; nothing is left behind then.
    """
    check(model, image, tokenizer)
    folder = pathlib.Path(folder)
    _check_replaceable(folder)
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(params))
    if isinstance(model.image_encoder, convnext.Encoder) and model.image_encoder.batch_norm:
        if batch_stats is None:
            raise UserError(
                "the image encoder has BatchNorm: pass its running statistics, batch_stats"
            )
        stats = jax.tree.map(np.asarray, dict(batch_stats["image_encoder"]))
        host["image_encoder"] = convnext.fold(host["image_encoder"], stats)
        model = model.clone(image_encoder=model.image_encoder.clone(batch_norm=False))
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write(partial, model, host, tokenizer, image, max_length, logit_scale, card)
        notes = _notes(model)
        difference = math.nan
        verified = importlib.util.find_spec("torch") is not None
        if verified:
            difference = verify(partial, model, host, image, max_length)
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the export gives other embeddings in PyTorch (difference {difference:.2g}, allowed "
                    f"{TOLERANCE:g}), so {folder} was not written; please report this with the config"
                )
        else:
            notes += (
                "not verified against PyTorch: install the torch extra (pip install "
                "'medvlp_jax[torch]') and export again",
            )
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder=folder, verified=verified, difference=difference, notes=notes)


# ---------------------------------------------------------------------------------------------------
# What fits


def check(model: VisionLanguageModel, image: ImageInput, tokenizer: Any) -> None:
    """Raises UserError listing every part that `VisionTextDualEncoderModel` cannot represent."""
    problems = [
        *_image_problems(model.image_encoder, image),
        *_text_problems(model, tokenizer),
        *_head_problems(model),
    ]
    if problems:
        raise UserError(
            "this model does not fit transformers' VisionTextDualEncoderModel:\n  "
            + "\n  ".join(problems)
        )


def _image_problems(encoder: Any, image: ImageInput) -> list[str]:
    key = "model.image_encoder"
    if isinstance(encoder, convnext.Encoder):
        return _size_problems(image, encoder.stride)
    if not isinstance(encoder, vit.Encoder):
        kind = type(encoder).__module__.rpartition(".")[2]
        return [
            f"{key}.name={kind!r}: only 'vit' and 'convnext' export; train with {key}.name='vit'"
        ]
    problems = []
    if encoder.pooling not in ("pooler", "cls"):
        problems.append(f"{key}.pooling={encoder.pooling!r}: use 'pooler' or 'cls'")
    if not encoder.class_token:
        problems.append(f"{key}.class_token=False: use True")
    if encoder.pre_layernorm:
        problems.append(f"{key}.pre_layernorm=True (a clip-* variant): use a variant without clip-")
    return problems + _size_problems(image, encoder.patch_size)


def _size_problems(image: ImageInput, multiple: int) -> list[str]:
    problems = []
    if image.size % multiple:
        problems.append(f"data.image.size={image.size}: use a multiple of {multiple}")
    if image.channels != 3:
        problems.append(f"data.image.channels={image.channels}: use 3 (grey images are repeated)")
    return problems


def _text_problems(model: VisionLanguageModel, tokenizer: Any) -> list[str]:
    key, encoder = "model.text_encoder", model.text_encoder
    if not isinstance(encoder, bert.Encoder):
        kind = type(encoder).__module__.rpartition(".")[2]
        return [f"{key}.name={kind!r}: only 'bert' exports; train with {key}.name='bert'"]
    problems = []
    if encoder.pooling != "pooler":
        problems.append(f"{key}.pooling={encoder.pooling!r}: use 'pooler' (BertModel's tanh layer)")
    if model.text_pooling != "encoder":
        problems.append(f"model.text_pooling={model.text_pooling!r}: use 'encoder'")
    if encoder.position_ids == "roberta" and tokenizer.pad_token_id != encoder.padding_idx:
        problems.append(
            f"{key}.padding_idx={encoder.padding_idx}: RoBERTa needs the tokenizer's pad id "
            f"{tokenizer.pad_token_id}"
        )
    return problems


def _head_problems(model: VisionLanguageModel) -> list[str]:
    problems = []
    if model.fusion is not None:
        problems.append("model.fusion: fusion encoders do not export; use fusion=None")
    widths = []
    for side in ("image", "text"):
        key, head = f"model.{side}_projection", getattr(model, f"{side}_projection")
        if head is None:
            widths.append(getattr(getattr(model, f"{side}_encoder"), "width", None))
        elif not isinstance(head, heads.LinearProjection):
            problems.append(f"{key} is {type(head).__name__}: use name='heads.LinearProjection'")
        elif head.use_bias:
            problems.append(f"{key}.use_bias=True: use False")
        else:
            widths.append(head.features)
    if len(widths) == 2 and widths[0] != widths[1]:
        problems.append(f"image and text embeddings have {widths[0]} and {widths[1]} features")
    return problems


def _notes(model: VisionLanguageModel) -> tuple[str, ...]:
    parts = ("image_token_projection", "text_token_projection")
    lost = [p for p in parts if getattr(model, p) is not None]
    return (f"{' and '.join(lost)} have no place in this format and stay behind",) if lost else ()


def _check_replaceable(folder: pathlib.Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "vision-text-dual-encoder":
        raise UserError(f"{folder} exists and is no earlier export: choose another folder")


# ---------------------------------------------------------------------------------------------------
# Writing


def _write(
    folder: pathlib.Path,
    model: VisionLanguageModel,
    params: Mapping[str, Any],
    tokenizer: Any,
    image: ImageInput,
    max_length: int,
    logit_scale: float,
    card: str,
) -> None:
    tensors = weights(model, params, image)
    tensors["logit_scale"] = np.asarray(math.log(logit_scale), np.float32)
    dump(folder / "config.json", config(model, image, tokenizer, tensors, logit_scale))
    # transformers refuses a file that does not say for which library it is.
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dump(folder / "preprocessor_config.json", image_processor(image))
    tokenizer.save_pretrained(folder, max_length)
    (folder / "README.md").write_text(card, encoding="utf-8")


def dump(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes JSON as transformers formats it."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def weights(
    model: VisionLanguageModel, params: Mapping[str, Any], image: ImageInput
) -> dict[str, np.ndarray]:
    """All tensors but the logit scale, with the names of transformers' files.

    What our model leaves out is filled in so that the result is the same: an identity pooler for the class
    token, zero biases, the fixed position table, an identity projection.
    """
    vision: Any = model.image_encoder
    text: Any = model.text_encoder
    rules = convnext.TORCH_RULES if isinstance(vision, convnext.Encoder) else vit.TORCH_RULES
    tensors = keys.to_torch(params["image_encoder"], rules, prefix="vision_model.")
    tensors |= keys.to_torch(params["text_encoder"], bert.TORCH_RULES, prefix="text_model.")
    fill = {} if isinstance(vision, convnext.Encoder) else _vit_fill(vision, image)
    if not text.token_types:
        fill["text_model.embeddings.token_type_embeddings.weight"] = np.zeros(
            (1, text.width), np.float32
        )
    for ours, theirs, width in (
        ("image_projection", "visual_projection", vision.width),
        ("text_projection", "text_projection", text.width),
    ):
        head = params.get(ours)
        kernel = np.eye(width, dtype=np.float32) if head is None else head["fc"]["kernel"]
        fill[f"{theirs}.weight"] = np.ascontiguousarray(kernel.T)
    return tensors | fill


def _vit_fill(vision: vit.Encoder, image: ImageInput) -> dict[str, np.ndarray]:
    fill: dict[str, np.ndarray] = {}
    if vision.pooling == "cls":
        fill["vision_model.pooler.dense.weight"] = np.eye(vision.width, dtype=np.float32)
        fill["vision_model.pooler.dense.bias"] = np.zeros(vision.width, np.float32)
    if not vision.patch_bias:
        fill["vision_model.embeddings.patch_embeddings.projection.bias"] = np.zeros(
            vision.width, np.float32
        )
    if vision.positions == "sincos":
        side = image.size // vision.patch_size
        table = vit.sincos_2d(vision.width, (side, side), cls=True)
        fill["vision_model.embeddings.position_embeddings"] = table[None].astype(np.float32)
    return fill


def config(
    model: VisionLanguageModel,
    image: ImageInput,
    tokenizer: Any,
    tensors: Mapping[str, np.ndarray],
    logit_scale: float,
) -> dict[str, Any]:
    """config.json of a VisionTextDualEncoderModel."""
    return {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "dtype": "float32",
        "projection_dim": int(tensors["visual_projection.weight"].shape[0]),
        "logit_scale_init_value": math.log(logit_scale),
        "vision_config": _vision_config(model.image_encoder, image),
        "text_config": _text_config(model.text_encoder, tokenizer),
        "transformers_version": importlib.metadata.version("transformers"),
    }


def _vision_config(encoder: Any, image: ImageInput) -> dict[str, Any]:
    if isinstance(encoder, convnext.Encoder):
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
            "image_size": image.size,
            "patch_size": encoder.patch_size,
            "num_channels": image.channels,
        }
    return {
        "model_type": "vit",
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": encoder.activation,
        "layer_norm_eps": encoder.layer_norm_eps,
        "image_size": image.size,
        "patch_size": encoder.patch_size,
        "num_channels": image.channels,
        "qkv_bias": encoder.qkv_bias,
        "pooler_output_size": encoder.width,
        "pooler_act": "tanh" if encoder.pooling == "pooler" else "linear",
        **_dropout(encoder),
    }


def _text_config(encoder: Any, tokenizer: Any) -> dict[str, Any]:
    roberta = encoder.position_ids == "roberta"
    return {
        "model_type": "roberta" if roberta else "bert",
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": encoder.activation,
        "layer_norm_eps": encoder.layer_norm_eps,
        "max_position_embeddings": encoder.max_positions,
        "type_vocab_size": max(encoder.token_types, 1),
        "pad_token_id": encoder.padding_idx if roberta else tokenizer.pad_token_id,
        **_dropout(encoder),
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
# Verification


def verify(
    folder: pathlib.Path,
    model: VisionLanguageModel,
    params: Mapping[str, Any],
    image: ImageInput,
    max_length: int,
) -> float:
    """Largest difference between our embeddings and PyTorch's on random inputs; needs PyTorch.

    Raises:
        UserError: transformers finds tensors missing, left over or of another shape.
    """
    import torch
    from transformers import VisionTextDualEncoderModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        loaded: Any = VisionTextDualEncoderModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    theirs, info = loaded
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise UserError(f"transformers cannot load the export: {wrong}; please report this")
    pixels, ids, mask = _random_inputs(model, image, max_length)
    with torch.inference_mode():
        out = theirs.eval()(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    batch = {"image": pixels, "input_ids": ids, "attention_mask": mask}
    batch["word_ids"] = np.where(mask > 0, 0, -1).astype(np.int32)
    exact = _float32(model)
    with jax.default_matmul_precision("highest"):
        image_out: Any = exact.apply({"params": params}, batch, method="encode_image")
        text_out: Any = exact.apply({"params": params}, batch, method="encode_text")
    pairs = (
        (image_out["image_embed"], out.image_embeds),
        (text_out["text_embed"], out.text_embeds),
    )
    return max(float(np.abs(np.asarray(a) - b.numpy()).max()) for a, b in pairs)


def _random_inputs(
    model: VisionLanguageModel, image: ImageInput, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two normalised images and two texts, one of them padded."""
    rng = np.random.default_rng(0)
    text: Any = model.text_encoder
    pixels = rng.normal(size=(2, image.size, image.size, image.channels)).astype(np.float32)
    pad = text.padding_idx if text.position_ids == "roberta" else 0
    # RoBERTa's positions follow the pad id, so no real token may have it.
    ids = rng.integers(pad + 1, text.vocab_size, (2, max_length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, max(1, max_length // 2) :] = 0
    return pixels, np.where(mask > 0, ids, pad).astype(np.int32), mask


def _float32(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model with float32 arithmetic in the parts that are exported."""
    parts = ("image_encoder", "text_encoder", "image_projection", "text_projection")
    exact = {
        name: getattr(model, name).clone(dtype=jnp.float32)
        for name in parts
        if getattr(model, name) is not None
    }
    return model.clone(**exact, image_token_projection=None, text_token_projection=None)
