"""Export of a captioner, an image encoder with a causal text decoder, to a folder that transformers loads.

The folder holds a `VisionEncoderDecoderModel`: a ViTModel or Dinov2Model and a GPT2LMHeadModel with
cross-attention. `context_projection` becomes its `enc_to_dec_proj`.
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
from medvlp_jax.interop import exporting, hf_format, keys
from medvlp_jax.interop.exporting import Exported, ImageInput, Trained, dump
from medvlp_jax.models import causal_decoder, heads, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

TOLERANCE = 1e-4
"""Largest difference of a logit that an export may have, relative to the largest one if above 1."""

_DECODER = (
    "width",
    "depth",
    "heads",
    "mlp_dim",
    "vocab_size",
    "max_positions",
    "cross_attention",
    "tied",
    "activation",
    "layer_norm_eps",
)
_ACTIVATIONS = {"gelu_tanh": "gelu_new"}  # GPT-2's own name of it

USAGE = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

folder = "."  # this folder
model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
image = Image.open("image.png").convert("RGB")
pixels = processor(image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    ids = model.generate(pixels, do_sample=False)
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
```"""


def fits(model: VisionLanguageModel) -> bool:
    """Whether a model is a captioner: it writes text and does not read any."""
    return model.text_decoder is not None and model.text_encoder is None


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes config, weights, tokenizer, image processor and model card.

    Args:
        trained: a captioner, see `fits`.
        folder: made; an earlier export there is replaced once the new one is verified.

    Raises:
        UserError: the model does not fit (names each part and the config key to change), the folder holds
            other files, or PyTorch gives other logits; nothing is left behind then.
    """
    check(trained.model, trained.image)
    difference, notes = math.nan, _notes(trained.model)
    verified = importlib.util.find_spec("torch") is not None
    earlier = exporting.has_entry("config.json", "exported_by", "medvlp_jax")
    with exporting.staged(folder, earlier) as new:
        _write(new, trained.exact())
        if verified:
            difference = verify(new, trained)
            exporting.accept(difference, TOLERANCE, folder, "PyTorch")
        else:
            notes += (hf_format.UNVERIFIED,)
    return Exported(
        folder=pathlib.Path(folder), verified=verified, difference=difference, notes=notes
    )


# ---------------------------------------------------------------------------------------------------
# What fits


def check(model: VisionLanguageModel, image: ImageInput) -> None:
    """Raises UserError listing every part that a VisionEncoderDecoderModel cannot represent."""
    problems = [
        *_image_problems(model.image_encoder, image),
        *_decoder_problems(model.text_decoder),
    ]
    if model.fusion is not None:
        problems.append("model.fusion: it has no place in this format; use fusion=None")
    problems = problems or _context_problems(model)
    if problems:
        raise UserError(
            "this model does not fit transformers' VisionEncoderDecoderModel (--to torch takes more):\n  "
            + "\n  ".join(problems)
        )


def _image_problems(encoder: Any, image: ImageInput) -> list[str]:
    key = "model.image_encoder"
    if not isinstance(encoder, vit.Encoder):
        return [f"{key}.name={hf_format.kind(encoder)!r}: only 'vit' gives a decoder its tokens"]
    problems = hf_format.image_problems(encoder, image)
    if encoder.pre_layernorm:
        problems.append(
            f"{key}.pre_layernorm=True: CLIPVisionModel hands on its tokens without the last norm; use a "
            "variant without clip-"
        )
    if encoder.registers:
        problems.append(f"{key}.registers={encoder.registers}: their decoder would see them; use 0")
    return problems


def _decoder_problems(decoder: Any) -> list[str]:
    key = "model.text_decoder"
    if not isinstance(decoder, causal_decoder.Decoder):
        return [f"{key} is {type(decoder).__name__}: use name='causal_decoder.Decoder'"]
    problems = exporting.unread(decoder, _DECODER, key)
    if not decoder.cross_attention:
        problems.append(f"{key}.cross_attention=False: the decoder would not see the image")
    return problems


def _context_problems(model: VisionLanguageModel) -> list[str]:
    """transformers projects the image tokens if, and only if, encoder and decoder have other widths."""
    encoder: Any = model.image_encoder
    decoder: Any = model.text_decoder
    head = model.context_projection
    key = "model.context_projection"
    if encoder.width == decoder.width:
        return [] if head is None else [f"{key}: both sides are {encoder.width} wide; use None"]
    if isinstance(head, heads.LinearProjection) and head.features == decoder.width:
        return []
    return [
        f"{key}: the image tokens are {encoder.width} wide and the decoder {decoder.width}; use "
        f"dict(name='heads.LinearProjection', features={decoder.width})"
    ]


def _notes(model: VisionLanguageModel) -> tuple[str, ...]:
    lost = [f"{side}_projection" for side in ("image", "text")]
    lost = [name for name in lost if getattr(model, name) is not None]
    return (f"{' and '.join(lost)} stay behind",) if lost else ()


# ---------------------------------------------------------------------------------------------------
# Writing


def _write(folder: pathlib.Path, trained: Trained) -> None:
    tokenizer = trained.tokenizer
    dump(folder / "config.json", config(trained.model, trained.image, tokenizer))
    length = {"max_length": trained.max_length}
    dump(folder / "generation_config.json", {**_special_tokens(tokenizer), **length})
    tensors = weights(trained.model, trained.params, trained.image)
    # transformers refuses a file that does not say for which library it is.
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dump(folder / "preprocessor_config.json", hf_format.image_processor(trained.image))
    tokenizer.save_pretrained(folder, trained.max_length)
    (folder / "README.md").write_text(trained.card, encoding="utf-8")


def weights(
    model: VisionLanguageModel, params: Mapping[str, Any], image: ImageInput
) -> dict[str, np.ndarray]:
    """All tensors; a projection without bias gets one of zeros, a tied output layer is not repeated."""
    encoder: Any = model.image_encoder
    tensors: dict[str, np.ndarray] = {}
    vision = hf_format.image_tensors(encoder, params["image_encoder"], image)
    text = keys.to_torch(params["text_decoder"], causal_decoder.TORCH_RULES)
    for prefix, own in (("encoder.", vision), ("decoder.", text)):
        tensors |= {prefix + key: value for key, value in own.items()}
    head = params.get("context_projection")
    if head is not None:
        kernel = np.ascontiguousarray(head["fc"]["kernel"].T)
        tensors["enc_to_dec_proj.weight"] = kernel
        zeros = np.zeros(len(kernel), np.float32)
        tensors["enc_to_dec_proj.bias"] = head["fc"].get("bias", zeros)
    return tensors


def config(model: VisionLanguageModel, image: ImageInput, tokenizer: Any) -> dict[str, Any]:
    """config.json of a VisionEncoderDecoderModel."""
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "model_type": "vision-encoder-decoder",
        "exported_by": "medvlp_jax",
        "dtype": "float32",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,  # of encoder and decoder
        "encoder": hf_format.image_config(model.image_encoder, image),
        "decoder": _decoder_config(model.text_decoder, tokenizer),
        "transformers_version": importlib.metadata.version("transformers"),
        **_special_tokens(tokenizer),
    }


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    return {
        "decoder_start_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _decoder_config(decoder: Any, tokenizer: Any) -> dict[str, Any]:
    own = decoder.attention_dropout
    return {
        "model_type": "gpt2",
        "is_decoder": True,
        "add_cross_attention": True,
        "n_embd": decoder.width,
        "n_layer": decoder.depth,
        "n_head": decoder.heads,
        "n_inner": decoder.mlp_dim,
        "n_positions": decoder.max_positions,
        "vocab_size": decoder.vocab_size,
        "activation_function": _ACTIVATIONS.get(decoder.activation, decoder.activation),
        "layer_norm_epsilon": decoder.layer_norm_eps,
        "tie_word_embeddings": decoder.tied,
        "resid_pdrop": decoder.dropout,
        "embd_pdrop": decoder.dropout,
        "attn_pdrop": decoder.dropout if own is None else own,
        **_special_tokens(tokenizer),
    }


# ---------------------------------------------------------------------------------------------------
# Verification


def verify(folder: pathlib.Path, trained: Trained) -> float:
    """Largest difference between our logits at real tokens and PyTorch's on random inputs; needs PyTorch.

    Raises:
        UserError: transformers finds tensors missing, left over or of another shape.
    """
    import torch
    from transformers import VisionEncoderDecoderModel

    theirs = hf_format.load_strictly(VisionEncoderDecoderModel, folder)
    batch = exporting.random_batch(trained, 2)
    mask = batch["attention_mask"]
    with torch.inference_mode():
        out = theirs(
            pixel_values=torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()),
            decoder_input_ids=torch.from_numpy(batch["input_ids"]).long(),
            decoder_attention_mask=torch.from_numpy(mask).long(),
        )
    ours, real = exporting.outputs(trained, batch)["decoder_logits"], mask > 0
    return exporting.largest_difference({"logits": (ours[real], out.logits.numpy()[real])})
