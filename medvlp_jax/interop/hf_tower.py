"""Export of one tower to a folder that `transformers.AutoModel` loads: a plain ViTModel, BertModel and so on.

Heads have no place in such a folder, so any system's tower fits if its encoder does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, hf_siglip
from medvlp_jax.interop.exporting import Exported, Trained, dump
from medvlp_jax.models import bert, clip_text, siglip_text, swin, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

Part = Literal["image", "text"]

TOLERANCE = 1e-4
"""Largest difference of an entry of an output that an export may have, relative to the output's largest entry
where that is above 1."""

_ARCHITECTURES = {
    "vit": "ViTModel",
    "clip_vision_model": "CLIPVisionModel",
    "clip_text_model": "CLIPTextModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "convnext": "ConvNextModel",
    "resnet": "ResNetModel",
    "swin": "SwinModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel",
    "bert": "BertModel",
    "roberta": "RobertaModel",
}

USAGE = {
    "image": """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "."  # this folder
model = AutoModel.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).last_hidden_state.shape)
```""",
    "text": """\
```python
import torch
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder
model = AutoModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["No pleural effusion."], truncation=True, return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).last_hidden_state.shape)
```""",
}
"""Part -> code of the model card."""

SIGLIP_TEXT_USAGE = """\
```python
import torch
from transformers import AutoTokenizer, SiglipTextModel

folder = "."  # this folder
model = SiglipTextModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = ["No pleural effusion."]  # padded to the length of training, which the tower looks at
inputs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).pooler_output.shape)
```"""
"""That of SigLIP's text tower, which AutoModel does not know."""


def usage(model: VisionLanguageModel, part: Part) -> str:
    """Code that loads a tower, for the model card."""
    if part == "text" and isinstance(model.text_encoder, siglip_text.Encoder):
        return SIGLIP_TEXT_USAGE
    return USAGE[part]


def export(trained: Trained, folder: str | os.PathLike[str], part: Part) -> Exported:
    """Writes config, weights, tokenizer or image processor, and model card of one tower.

    Args:
        trained: its encoder of `part` is a `vit`, `convnext`, `resnet`, `swin`, `bert`, `clip_text` or
            `siglip_text` encoder.
        folder: made; an earlier export there is replaced once the new one is verified.
        part: which tower.

    Raises:
        UserError: the tower does not fit (names the config key to change), the folder holds other files, or
            PyTorch gives other outputs; nothing is left behind then.
    """
    check(trained, part)
    exact = trained.exact()
    difference = math.nan
    notes = _notes(trained, part)
    verified = importlib.util.find_spec("torch") is not None
    # A downloaded model has the same kind of config.json: only ours says who wrote it.
    earlier = exporting.has_entry("config.json", "exported_by", "medvlp_jax")
    with exporting.staged(folder, earlier) as new:
        _write(new, exact, part)
        if verified:
            difference = verify(new, trained, part)
            exporting.accept(difference, TOLERANCE, folder, "PyTorch")
        else:
            notes += (hf_format.UNVERIFIED,)
    return Exported(
        folder=pathlib.Path(folder), verified=verified, difference=difference, notes=notes
    )


# ---------------------------------------------------------------------------------------------------
# What fits


def check(trained: Trained, part: Part) -> None:
    """Raises UserError listing what transformers has no class for."""
    if part not in ("image", "text"):
        raise UserError(f"part {part!r} is unknown: choose image or text")
    found = problems(trained, part)
    if found:
        raise UserError(
            f"the {part} tower does not fit a model of transformers:\n  " + "\n  ".join(found)
        )


def problems(trained: Trained, part: Part) -> list[str]:
    """What keeps a tower from being a model of transformers."""
    encoder: Any = getattr(trained.model, f"{part}_encoder")
    if encoder is None:
        return [f"model.{part}_encoder is None: this model has no such tower"]
    siglip = hf_siglip.is_tower(encoder)
    if part == "image":
        find = hf_siglip.image_problems if siglip else hf_format.image_problems
        return find(encoder, trained.image)
    if siglip:
        return hf_siglip.text_problems(encoder)
    return hf_format.text_problems(encoder, trained.tokenizer)


def _notes(trained: Trained, part: Part) -> tuple[str, ...]:
    encoder: Any = getattr(trained.model, f"{part}_encoder")
    notes = []
    if getattr(trained.model, f"{part}_projection") is not None:
        notes.append("the projection to the shared space stays behind")
    if not _pools_alike(encoder):
        notes.append(
            f"pooler_output is not ours: this tower pools by {encoder.pooling!r}, from last_hidden_state"
        )
    return tuple(notes)


def _pools_alike(encoder: Any) -> bool:
    """Whether the class of transformers pools as our encoder does."""
    if isinstance(encoder, bert.Encoder):
        return encoder.pooling == "pooler"
    if isinstance(encoder, vit.Encoder) and not hf_siglip.is_tower(encoder):
        plain = not encoder.pre_layernorm and not encoder.layer_scale
        return encoder.pooling == "cls" or (encoder.pooling == "pooler" and plain)
    return True


# ---------------------------------------------------------------------------------------------------
# Writing


def _write(folder: pathlib.Path, trained: Trained, part: Part) -> None:
    encoder, params = getattr(trained.model, f"{part}_encoder"), trained.params[f"{part}_encoder"]
    siglip = hf_siglip.is_tower(encoder)
    if part == "image":
        if siglip:
            tensors = hf_siglip.image_tensors(encoder, params, trained.image)
            config = hf_siglip.image_config(encoder, trained.image)
        else:
            stats = trained.batch_stats.get("image_encoder")
            tensors = hf_format.image_tensors(encoder, params, trained.image, stats)
            config = hf_format.image_config(encoder, trained.image)
        dump(folder / "preprocessor_config.json", hf_format.image_processor(trained.image))
    else:
        form = hf_siglip if siglip else hf_format
        config = form.text_config(encoder, trained.tokenizer)
        trained.tokenizer.save_pretrained(folder, trained.max_length)
        if siglip:
            tensors = hf_siglip.text_tensors(params)
            hf_siglip.drop_mask(folder)
        else:
            tensors = hf_format.text_tensors(encoder, params)
    own = {
        "architectures": [_ARCHITECTURES[config["model_type"]]],
        "dtype": "float32",
        "exported_by": "medvlp_jax",
        "transformers_version": importlib.metadata.version("transformers"),
    }
    dump(folder / "config.json", {**config, **own})
    # transformers refuses a file that does not say for which library it is.
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(trained.card, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------
# Verification


def verify(folder: pathlib.Path, trained: Trained, part: Part) -> float:
    """Largest difference between the tower's outputs and PyTorch's on random inputs; needs PyTorch.

    Raises:
        UserError: transformers finds tensors missing, left over or of another shape.
    """
    import torch
    from transformers import AutoModel, SiglipTextModel

    encoder = getattr(trained.model, f"{part}_encoder")
    # The one class here that AutoModel does not know.
    siglip_words = isinstance(encoder, siglip_text.Encoder)
    theirs = hf_format.load_strictly(SiglipTextModel if siglip_words else AutoModel, folder)
    batch = exporting.random_batch(trained, 2)
    ours = tower_outputs(trained, part, batch)
    with torch.inference_mode():
        if part == "image":
            out = theirs(pixel_values=torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()))
        else:
            ids, mask = (torch.from_numpy(batch[k]) for k in ("input_ids", "attention_mask"))
            masks = {} if siglip_words else {"attention_mask": mask.long()}
            out = theirs(input_ids=ids.long(), **masks)
    states, pooled = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    if states.ndim == 4:  # a map [B, D, h, w], and ResNetModel's pooled output is one too
        states = states.reshape(*states.shape[:2], -1).swapaxes(1, 2)
        pooled = pooled.reshape(len(pooled), -1)
    registers = getattr(encoder, "registers", 0)
    if registers:  # ours are not part of the tokens
        states = np.concatenate([states[:, :1], states[:, 1 + registers :]], axis=1)
    pairs = {"states": (ours["states"], states)}
    if part == "text":
        real = batch["attention_mask"] > 0
        pairs = {"states": (ours["states"][real], states[real])}
    if _pools_alike(encoder):
        pairs["pooled"] = (ours["pooled"], pooled)
    return exporting.largest_difference(pairs)


def tower_outputs(
    trained: Trained, part: Part, batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Our `states` [B, N, D], what transformers calls last_hidden_state, and `pooled` [B, D]."""
    model: Any = exporting.float32(trained.model)
    encoder, name = getattr(model, f"{part}_encoder"), f"{part}_encoder"
    variables = {"params": trained.params[name]}
    if name in trained.batch_stats:
        variables["batch_stats"] = trained.batch_stats[name]
    inputs = (batch["image"],) if part == "image" else (batch["input_ids"], batch["attention_mask"])
    with jax.default_matmul_precision("highest"):
        got: Any = encoder.apply(variables, *inputs)
    states = np.asarray(got["hidden"][-1])
    if hf_siglip.is_tower(encoder) or isinstance(encoder, clip_text.Encoder | swin.Encoder):
        states = np.asarray(got["tokens"])
    elif isinstance(encoder, vit.Encoder) and not encoder.pre_layernorm:
        # ViTModel normalises all tokens, CLIPVisionModel only the class token it pools.
        cls = np.asarray(got["cls"])[:, None]
        states = np.concatenate([cls, np.asarray(got["tokens"])], axis=1)
    elif states.ndim == 4:
        states = states.reshape(len(states), -1, states.shape[-1])
    return {"states": states, "pooled": np.asarray(got["pooled"])}
