"""Export as a PyTorch package: weights and one module file that needs torch and safetensors only.

The module file is `torch_package/medvlp_torch.py`, copied as it is: its modules are named as ours, so that
weights need a change of layout and no table of names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import shutil
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, keys
from medvlp_jax.interop.exporting import Exported, Trained
from medvlp_jax.models import bert, clip_text, convnext, fusion, heads, resnet, vit

FORMAT = "medvlp_jax-torch"
"""Entry `format` of the manifest."""

TOLERANCE = 1e-4
"""Largest difference of an entry of an output that an export may have, relative to the output's largest entry
where that is above 1 (embeddings are unit vectors)."""

MODULE = "medvlp_torch.py"
WEIGHTS = "model.safetensors"

USAGE = """\
```python
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer

folder = "."  # this folder
sys.path.insert(0, folder)
from medvlp_torch import load

model = load(folder)
manifest = json.loads((pathlib.Path(folder) / "manifest.json").read_text())
length = manifest["text"]["max_length"]
tokenizer = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
tokenizer.enable_truncation(length)
tokenizer.enable_padding(length=length, pad_id=manifest["text"]["pad_token_id"])
rows = tokenizer.encode_batch(["There is a pleural effusion.", "No pleural effusion."])
inputs = {
    "input_ids": torch.tensor([row.ids for row in rows]),
    "attention_mask": torch.tensor([row.attention_mask for row in rows]),
    # The word each token belongs to, -1 for special tokens; only some models use it.
    "word_ids": torch.tensor([[-1 if w is None else w for w in row.word_ids] for row in rows]),
}
side, channels = manifest["image"]["size"], manifest["image"]["channels"]
pixels = torch.zeros(1, channels, side, side)  # normalised as manifest["image"] says
with torch.inference_mode():
    print(model(pixels, **inputs).softmax(dim=-1))
```"""

_FIELDS: dict[type, tuple[str, tuple[str, ...]]] = {
    vit.Encoder: (
        "vit",
        (
            "patch_size",
            "width",
            "depth",
            "heads",
            "mlp_dim",
            "class_token",
            "pooling",
            "registers",
            "layer_scale",
            "pre_layernorm",
            "activation",
            "layer_norm_eps",
            "qkv_bias",
            "patch_bias",
        ),
    ),
    resnet.Encoder: ("resnet", ("depths", "bottleneck", "stem_width", "token_layer")),
    convnext.Encoder: (
        "convnext",
        ("hidden_sizes", "depths", "patch_size", "layer_scale", "layer_norm_eps"),
    ),
    bert.Encoder: (
        "bert",
        (
            "width",
            "depth",
            "heads",
            "mlp_dim",
            "vocab_size",
            "max_positions",
            "token_types",
            "position_ids",
            "padding_idx",
            "pooling",
            "activation",
            "layer_norm_eps",
        ),
    ),
    clip_text.Encoder: (
        "clip_text",
        (
            "width",
            "depth",
            "heads",
            "mlp_dim",
            "vocab_size",
            "max_positions",
            "eos_token_id",
            "activation",
            "layer_norm_eps",
        ),
    ),
    heads.LinearProjection: ("LinearProjection", ("features", "use_bias")),
    heads.MLPProjection: ("MLPProjection", ("features", "hidden", "activation")),
    heads.BatchNormProjection: ("BatchNormProjection", ("features", "hidden")),
    fusion.CoAttention: ("CoAttention", ("width", "layers", "heads", "mlp_dim", "layer_norm_eps")),
}
"""Our class -> its name in the manifest and the fields that the PyTorch module reads."""

_VALUES = {
    "pooling": ("cls", "mean", "pooler", "map", "eos", "max", "attention"),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu"),
}
"""Field -> the values that the PyTorch module knows."""

_ALLOWED: dict[str, tuple[type, ...]] = {
    "image_encoder": (vit.Encoder, resnet.Encoder, convnext.Encoder),
    "text_encoder": (bert.Encoder, clip_text.Encoder),
    "image_projection": (
        heads.LinearProjection,
        heads.MLPProjection,
        heads.BatchNormProjection,
        type(None),
    ),
    "text_projection": (
        heads.LinearProjection,
        heads.MLPProjection,
        heads.BatchNormProjection,
        type(None),
    ),
    "fusion": (fusion.CoAttention, type(None)),
}

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(
    r"(^|/)((?:image_|text_)?block_\d+|layer\d_\d+|stage_\d+_block_\d+|down_\d+(?:_norm)?)/"
)


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes module file, manifest, weights, tokenizer and model card.

    Args:
        trained: a `vit`, `resnet` or `convnext` image encoder, a `bert` or `clip_text` text encoder, heads
            of `models.heads` and, optionally, `fusion.CoAttention`.
        folder: made; an earlier export there is replaced once the new one is verified.

    Raises:
        UserError: the model does not fit (names each part), the folder holds other files, or PyTorch gives
            other outputs; nothing is left behind then.
    """
    check(trained)
    difference = math.nan
    notes = lost_heads(trained)
    verified = importlib.util.find_spec("torch") is not None
    earlier = exporting.has_entry(exporting.MANIFEST, "format", FORMAT)
    with exporting.staged(folder, earlier) as new:
        write(new, trained)
        if verified:
            difference = verify(new, trained)
            exporting.accept(difference, TOLERANCE, folder, "PyTorch")
        else:
            notes += (hf_format.UNVERIFIED,)
    return Exported(
        folder=pathlib.Path(folder), verified=verified, difference=difference, notes=notes
    )


def check(trained: Trained) -> None:
    """Raises UserError listing every part that the module file has no class for."""
    problems = []
    for part, allowed in _ALLOWED.items():
        module = getattr(trained.model, part)
        if not isinstance(module, allowed):
            name = type(module).__name__
            name = hf_format.kind(module) if name == "Encoder" else name
            known = ", ".join(_FIELDS[kind][0] for kind in allowed if kind in _FIELDS)
            problems.append(f"model.{part} is {name}: only {known} fit; --to jax takes any encoder")
        elif module is not None:
            # "positions" and "batch_norm" end up in the weights.
            read = (*_FIELDS[type(module)][1], "positions", "batch_norm")
            problems += exporting.unread(module, read, f"model.{part}")
            problems += [
                f"model.{part}.{field}={getattr(module, field)!r}: only {', '.join(values)} fit"
                for field, values in _VALUES.items()
                if getattr(module, field, values[0]) not in values
            ]
    if problems:
        raise UserError("this model does not fit the PyTorch package:\n  " + "\n  ".join(problems))


def write(folder: pathlib.Path, trained: Trained) -> None:
    """Fills a folder; verifies nothing."""
    exact = trained.exact()
    safetensors.numpy.save_file(tensors(exact), folder / WEIGHTS, metadata={"format": "pt"})
    words = ["word_ids"] if exact.needs_words else []
    facts = {
        "format": FORMAT,
        "weights": WEIGHTS,
        "model": config(exact),
        "inputs": {
            "encode_image": ["pixels"],
            "encode_text": ["input_ids", "attention_mask", *words],
        },
    }
    exporting.write_about(folder, exact, facts)
    shutil.copyfile(pathlib.Path(__file__).parent / "torch_package" / MODULE, folder / MODULE)


def config(trained: Trained) -> dict[str, Any]:
    """What `medvlp_torch.VisionLanguageModel` takes."""
    model = trained.model
    parts: dict[str, Any] = {}
    for part in _ALLOWED:
        module = getattr(model, part)
        parts[part] = None
        if module is not None:
            name, fields = _FIELDS[type(module)]
            parts[part] = {"name": name, **{field: getattr(module, field) for field in fields}}
    parts["image_encoder"]["image_size"] = trained.image.size
    parts["image_encoder"]["channels"] = trained.image.channels
    if parts["fusion"] is not None:
        parts["fusion"]["activation"] = "gelu"
    return {
        **parts,
        "text_pooling": model.text_pooling,
        "last_layers": model.last_layers,
        "merge_words": model.merge_words,
        "logit_scale": trained.logit_scale,
    }


def tensors(trained: Trained) -> dict[str, np.ndarray]:
    """All weights in PyTorch's layout, named as the modules of `medvlp_torch.py`."""
    named = {_name(k, _LEAVES): _layout(k, v) for k, v in keys.flatten(trained.params).items()}
    statistics = keys.flatten(trained.batch_stats)
    named |= {_name(k, _STATISTICS): np.asarray(v) for k, v in statistics.items()}
    encoder: Any = trained.model.image_encoder
    if isinstance(encoder, vit.Encoder) and encoder.positions == "sincos":
        side = trained.image.size // encoder.patch_size
        table = vit.sincos_2d(encoder.width, (side, side), cls=encoder.class_token)
        named["image_encoder.position_embed"] = table[None].astype(np.float32)
    return {key: np.ascontiguousarray(value) for key, value in named.items()}


def _name(path: str, leaves: Mapping[str, str]) -> str:
    """`image_encoder/block_0/mlp/fc1/kernel` -> `image_encoder.blocks.block_0.mlp.fc1.weight`."""
    *parents, leaf = _BLOCK.sub(r"\1blocks/\2/", path).split("/")
    return ".".join([*parents, leaves.get(leaf, leaf)])


def _layout(path: str, value: Any) -> np.ndarray:
    value = np.asarray(value)
    if not path.endswith("/kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T  # HWIO -> OIHW, or [in, out]


def load_package(folder: pathlib.Path) -> Any:
    """The PyTorch model of an export, read with its own copy of the module file."""
    path = folder / MODULE
    if not path.is_file():
        raise UserError(f"{folder} holds no {MODULE}: give the folder of an export --to torch")
    # Run from the source: an import would leave a __pycache__ in the export.
    module = types.ModuleType("medvlp_torch")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module.load(folder)


def verify(folder: pathlib.Path, trained: Trained) -> float:
    """Largest difference between our outputs and the package's on random inputs; needs PyTorch."""
    import torch

    model = load_package(folder)
    batch = exporting.random_batch(trained, 3)
    ours = exporting.outputs(trained, batch)
    given = {k: torch.from_numpy(v).long() for k, v in batch.items() if k != "image"}
    pixels = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    words = (given["word_ids"],) if trained.needs_words else ()
    text = (given["input_ids"], given["attention_mask"])
    with torch.inference_mode():
        pairs = {
            "image": (ours["image_embed"], model.encode_image(pixels).numpy()),
            "text": (ours["text_embed"], model.encode_text(*text, *words).numpy()),
        }
        if trained.model.fusion is not None:
            fused = model.fuse(pixels, *text)
            for key in ("pooled", "image_tokens", "text_tokens"):
                pairs[key] = (ours[f"fused_{key}"], fused[key].numpy())
    if "text_tokens" in pairs:  # states at padding mean nothing
        real = batch["attention_mask"] > 0
        states, theirs = pairs["text_tokens"]
        pairs["text_tokens"] = (states[real], theirs[real])
    return exporting.largest_difference(pairs)


def lost_heads(trained: Trained) -> tuple[str, ...]:
    """A note on the heads of tokens, if there are any."""
    parts = ("image_token_projection", "text_token_projection")
    lost = [part for part in parts if getattr(trained.model, part) is not None]
    return (f"{' and '.join(lost)} have no place in this format and stay behind",) if lost else ()
