"""A vision-language model that was trained with medvlp_jax, rebuilt in PyTorch.

Needs torch and safetensors, nothing else. With this folder, `manifest.json` and the weights in one place:

    from medvlp_torch import load
    model = load(".")
    image_embed = model.encode_image(pixels)                # float [B, C, H, W], normalised
    text_embed = model.encode_text(input_ids, attention_mask)

`manifest.json` lists the inputs of each method. Licence: Apache-2.0. Research use only, not for clinical use.
"""

from __future__ import annotations

import json
import os
import pathlib

import safetensors.torch

from .model import VisionLanguageModel

__all__ = ["VisionLanguageModel", "load"]


def load(folder: str | os.PathLike[str]) -> VisionLanguageModel:
    """The model of a folder, in evaluation mode on the CPU.

    Raises:
        RuntimeError: the weights do not fit the manifest.
    """
    folder = pathlib.Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    model = VisionLanguageModel(manifest["model"])
    model.load_state_dict(safetensors.torch.load_file(folder / manifest["weights"]))
    return model.eval()
