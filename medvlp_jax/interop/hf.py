"""Export of a dual encoder to a folder that transformers loads.

CLIP's own two towers become a `CLIPModel`, SigLIP's a `SiglipModel`, all others a
`VisionTextDualEncoderModel`.

The folder is written without PyTorch and without transformers. Where PyTorch is installed the export loads
the folder again and compares embeddings before it puts the folder in place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, hf_siglip
from medvlp_jax.interop.exporting import Exported, ImageInput, Trained, dump
from medvlp_jax.models import bert, clip_text, convnext, heads, siglip_text, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

TOLERANCE = 1e-4
"""Largest difference of an entry of the embeddings (unit vectors) that an export may have."""

_ARCHITECTURES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}

USAGE = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = "."  # this folder
model = AutoModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)

texts = ["There is a pleural effusion.", "No pleural effusion."]
inputs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
image = Image.open("image.png").convert("RGB")
inputs["pixel_values"] = processor(image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    print(model(**inputs).logits_per_image.softmax(dim=-1))
```"""


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
    logit_bias: float | None = None,
) -> Exported:
    """Writes config, weights, tokenizer, image processor and model card.

    Args:
        model: a dual encoder of `vit.Encoder` or `convnext.Encoder` and `bert.Encoder`, of CLIP's towers,
            `vit.Encoder` with `pre_layernorm` and `clip_text.Encoder`, or of SigLIP's, `vit.Encoder` without
            class token and with `map` pooling, and `siglip_text.Encoder`.
        params: its parameters (`variables["params"]["model"]`).
        tokenizer: from `data.text`.
        folder: made; an earlier export there is replaced once the new one is verified.
        image: see `ImageInput`.
        max_length: tokens per text.
        logit_scale: factor of the cosine, already exponentiated.
        card: text of README.md, from `model_card`.
        batch_stats: the model's running statistics, if its image encoder has BatchNorm; they are folded into
            the weights.
        logit_bias: what the trained loss adds to the logits; only a SiglipModel has a place for it.

    Raises:
        UserError: the model does not fit (names each part and the config key to change), the folder holds
            other files, or PyTorch gives other embeddings; nothing is left behind then.
    """
    check(model, image, tokenizer)
    folder = pathlib.Path(folder)
    trained = Trained(
        model=model,
        params=params,
        batch_stats=batch_stats or {},
        tokenizer=tokenizer,
        image=image,
        max_length=max_length,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        card=card,
    )
    with exporting.staged(folder, _is_earlier) as partial:
        _write(partial, trained.exact())
        notes = _notes(model)
        difference = math.nan
        verified = importlib.util.find_spec("torch") is not None
        if verified:
            difference = verify(partial, trained)
            exporting.accept(difference, TOLERANCE, folder, "PyTorch")
        else:
            notes += (hf_format.UNVERIFIED,)
    return Exported(folder=folder, verified=verified, difference=difference, notes=notes)


def model_type(model: VisionLanguageModel) -> str:
    """`model_type` of the config: clip, siglip or vision-text-dual-encoder."""
    if isinstance(model.text_encoder, siglip_text.Encoder):
        return "siglip"
    text = isinstance(model.text_encoder, clip_text.Encoder)
    return "clip" if text else "vision-text-dual-encoder"


def _is_earlier(folder: pathlib.Path) -> bool:
    """Whether a folder is an export; a downloaded CLIP has the same kind of config, but not our entry."""
    dual = exporting.has_entry("config.json", "model_type", "vision-text-dual-encoder")
    return dual(folder) or exporting.has_entry("config.json", "exported_by", "medvlp_jax")(folder)


# ---------------------------------------------------------------------------------------------------
# What fits


def check(model: VisionLanguageModel, image: ImageInput, tokenizer: Any) -> None:
    """Raises UserError listing every part that the class of transformers cannot represent."""
    if model_type(model) == "siglip":
        problems = hf_siglip.problems(model, image)
    else:
        problems = [
            *_image_problems(model, image),
            *_text_problems(model, tokenizer),
            *_head_problems(model),
        ]
    if problems:
        raise UserError(
            f"this model does not fit transformers' {_ARCHITECTURES[model_type(model)]} (--to torch and "
            "--to jax take more):\n  " + "\n  ".join(problems)
        )


def _image_problems(model: VisionLanguageModel, image: ImageInput) -> list[str]:
    key, encoder = "model.image_encoder", model.image_encoder
    clip = model_type(model) == "clip"
    if isinstance(encoder, convnext.Encoder) and not clip:
        return hf_format.image_problems(encoder, image)
    if not isinstance(encoder, vit.Encoder):
        wanted = "'vit' of a clip-* variant goes" if clip else "'vit' and 'convnext' go"
        return [
            f"{key}.name={hf_format.kind(encoder)!r}: only {wanted} with this text encoder; train with "
            f"{key}.name='vit'"
        ]
    problems = []
    plain = not encoder.pre_layernorm and not encoder.layer_scale
    poolings = ("pooler", "cls") if plain else ("cls",)
    if encoder.pooling not in poolings:
        problems.append(
            f"{key}.pooling={encoder.pooling!r}: use {' or '.join(map(repr, poolings))}"
        )
    if encoder.pre_layernorm and not clip:
        problems.append(
            f"{key}.pre_layernorm=True (a clip-* variant): use a variant without clip-, or the text "
            "encoder 'clip_text'"
        )
    if clip and not encoder.pre_layernorm:
        problems.append(f"{key}.pre_layernorm=False: 'clip_text' goes with a clip-* variant only")
    return problems + hf_format.image_problems(encoder, image)


def _text_problems(model: VisionLanguageModel, tokenizer: Any) -> list[str]:
    key, encoder = "model.text_encoder", model.text_encoder
    problems = hf_format.text_problems(encoder, tokenizer)
    if isinstance(encoder, bert.Encoder) and encoder.pooling != "pooler":
        problems.append(f"{key}.pooling={encoder.pooling!r}: use 'pooler' (BertModel's tanh layer)")
    if model.text_pooling != "encoder":
        problems.append(f"model.text_pooling={model.text_pooling!r}: use 'encoder'")
    return problems


def _head_problems(model: VisionLanguageModel) -> list[str]:
    problems = []
    if model.image_pooling != "encoder":
        problems.append(f"model.image_pooling={model.image_pooling!r}: use 'encoder'")
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


# ---------------------------------------------------------------------------------------------------
# Writing


def _write(folder: pathlib.Path, trained: Trained) -> None:
    model, image, scale = trained.model, trained.image, trained.logit_scale
    tensors = weights(model, trained.params, image)
    siglip = model_type(model) == "siglip"
    if siglip:
        tensors |= hf_siglip.logits(scale, trained.logit_bias)
    else:
        tensors["logit_scale"] = np.asarray(math.log(scale), np.float32)
    dump(folder / "config.json", config(model, image, trained.tokenizer, tensors, scale))
    # transformers refuses a file that does not say for which library it is.
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dump(folder / "preprocessor_config.json", hf_format.image_processor(image))
    trained.tokenizer.save_pretrained(folder, trained.max_length)
    if siglip:
        hf_siglip.drop_mask(folder)
    (folder / "README.md").write_text(trained.card, encoding="utf-8")


def weights(
    model: VisionLanguageModel, params: Mapping[str, Any], image: ImageInput
) -> dict[str, np.ndarray]:
    """All tensors but the logit scale, with the names of transformers' files.

    What our model leaves out is filled in so that the result is the same: an identity pooler for the class
    token, zero biases, the fixed position table, an identity projection.
    """
    if model_type(model) == "siglip":
        return hf_siglip.weights(model, params, image)
    vision: Any = model.image_encoder
    text: Any = model.text_encoder
    tensors: dict[str, np.ndarray] = {}
    for prefix, own in (
        ("vision_model.", hf_format.image_tensors(vision, params["image_encoder"], image)),
        ("text_model.", hf_format.text_tensors(text, params["text_encoder"])),
    ):
        tensors |= {prefix + key: value for key, value in own.items()}
    for ours, theirs, width in (
        ("image_projection", "visual_projection", vision.width),
        ("text_projection", "text_projection", text.width),
    ):
        head = params.get(ours)
        kernel = np.eye(width, dtype=np.float32) if head is None else head["fc"]["kernel"]
        tensors[f"{theirs}.weight"] = np.ascontiguousarray(kernel.T)
    return tensors


def config(
    model: VisionLanguageModel,
    image: ImageInput,
    tokenizer: Any,
    tensors: Mapping[str, np.ndarray],
    logit_scale: float,
) -> dict[str, Any]:
    """config.json of a VisionTextDualEncoderModel, CLIPModel or SiglipModel."""
    if model_type(model) == "siglip":
        return hf_siglip.config(model, image, tokenizer)
    return {
        "architectures": [_ARCHITECTURES[model_type(model)]],
        "model_type": model_type(model),
        "exported_by": "medvlp_jax",
        "dtype": "float32",
        "projection_dim": int(tensors["visual_projection.weight"].shape[0]),
        "logit_scale_init_value": math.log(logit_scale),
        "vision_config": hf_format.image_config(model.image_encoder, image),
        "text_config": hf_format.text_config(model.text_encoder, tokenizer),
        "transformers_version": importlib.metadata.version("transformers"),
    }


# ---------------------------------------------------------------------------------------------------
# Verification


def verify(folder: pathlib.Path, trained: Trained) -> float:
    """Largest difference between our embeddings and PyTorch's on random inputs; needs PyTorch.

    Raises:
        UserError: transformers finds tensors missing, left over or of another shape.
    """
    import torch
    from transformers import AutoModel

    theirs = hf_format.load_strictly(AutoModel, folder)
    batch = exporting.random_batch(trained, 2)
    # SigLIP's text tower looks at the padding, unless transformers is given a mask.
    masked = model_type(trained.model) != "siglip"
    mask = torch.from_numpy(batch["attention_mask"]).long() if masked else None
    with torch.inference_mode():
        out = theirs(
            input_ids=torch.from_numpy(batch["input_ids"]).long(),
            attention_mask=mask,
            pixel_values=torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()),
        )
    ours = exporting.outputs(trained, batch)
    return exporting.largest_difference(
        {
            "image": (ours["image_embed"], out.image_embeds.numpy()),
            "text": (ours["text_embed"], out.text_embeds.numpy()),
        }
    )
