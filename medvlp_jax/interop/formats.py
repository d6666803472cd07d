"""The formats of `export --to`: which function writes each, and what its model card says."""

from __future__ import annotations

import os
from typing import Any, get_args

from medvlp_jax.errors import UserError
from medvlp_jax.interop import (
    hf,
    hf_captioner,
    hf_tower,
    onnx_export,
    stablehlo,
    timm_export,
    torch_export,
)
from medvlp_jax.interop.exporting import Exported, Trained
from medvlp_jax.models.vision_language import VisionLanguageModel

FORMATS = {
    "hf": "transformers: dual encoder or captioner, or one tower with --part",
    "jax": "StableHLO programs through jax.export",
    "torch": "PyTorch modules and weights, without transformers",
    "onnx": "ONNX graphs",
    "timm": "timm: the image tower",
}
"""Name -> one line for the help."""

PARTS = ("both", *get_args(hf_tower.Part))


def check(to: str, part: str) -> None:
    """Raises UserError for a format or part that does not exist, or a part that the format does not have."""
    if to not in FORMATS:
        raise UserError(f"--to {to} is unknown: choose one of {', '.join(FORMATS)}")
    if part not in PARTS:
        raise UserError(f"--part {part} is unknown: choose one of {', '.join(PARTS)}")
    if to == "timm" and part == "text":
        raise UserError("--part text: timm has image towers only; --to hf takes it")
    if part != "both" and to not in ("hf", "timm"):
        raise UserError(
            f"--part {part} belongs to --to hf; the {to} export holds each tower as a function of its own"
        )


def export(trained: Trained, folder: str | os.PathLike[str], *, to: str, part: str) -> Exported:
    """Writes one format.

    Args:
        trained: the model.
        folder: made; an earlier export there is replaced once the new one is verified.
        to: key of `FORMATS`; part: of `PARTS`.

    Raises:
        UserError: see `check` and the export function of the format.
    """
    check(to, part)
    if to == "jax":
        return stablehlo.export(trained, folder)
    if to == "torch":
        return torch_export.export(trained, folder)
    if to == "onnx":
        return onnx_export.export(trained, folder)
    if to == "timm":
        return timm_export.export(trained, folder)
    if part == "image" or part == "text":
        return hf_tower.export(trained, folder, part)
    if hf_captioner.fits(trained.model):
        return hf_captioner.export(trained, folder)
    return hf.export(
        trained.model,
        trained.params,
        trained.tokenizer,
        folder,
        image=trained.image,
        max_length=trained.max_length,
        logit_scale=trained.logit_scale,
        card=trained.card,
        batch_stats=trained.batch_stats or None,
        logit_bias=trained.logit_bias,
    )


def card_options(to: str, part: str, model: VisionLanguageModel) -> dict[str, Any]:
    """The arguments of `model_card.model_card` that depend on format and model."""
    if to == "timm":
        return {
            "usage": timm_export.USAGE,
            "what": "Image encoder",
            "library": "timm",
            "pipeline": "image-feature-extraction",
        }
    if part == "image" or part == "text":
        task = "image-feature-extraction" if part == "image" else "feature-extraction"
        return {
            "usage": hf_tower.usage(model, part),
            "what": f"{part.capitalize()} encoder",
            "pipeline": task,
        }
    if to == "hf" and hf_captioner.fits(model):
        return {
            "usage": hf_captioner.USAGE,
            "what": "Image encoder and text decoder",
            "pipeline": "image-to-text",
        }
    usage = {
        "hf": hf.USAGE,
        "jax": stablehlo.USAGE,
        "torch": torch_export.USAGE,
        "onnx": onnx_export.USAGE,
    }
    library = {"hf": "transformers", "jax": "jax", "torch": "pytorch", "onnx": "onnx"}
    return {"usage": usage[to], "library": library[to]}
