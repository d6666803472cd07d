"""Export as a PyTorch package: weights and modules that need torch and safetensors only.

The modules are the folder `torch_package/medvlp_torch`, copied as it is: its layers are named as ours, so
that weights need a change of layout and no table of names.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, keys, torch_parts
from medvlp_jax.interop.exporting import Exported, Trained
from medvlp_jax.models import frames, multi_image, vit

FORMAT = "medvlp_jax-torch"
"""Entry `format` of the manifest."""

TOLERANCE = 1e-4
"""Largest difference of an entry of an output that an export may have, relative to the output's largest entry
where that is above 1 (embeddings are unit vectors)."""

PACKAGE = "medvlp_torch"
WEIGHTS = "model.safetensors"

OUTPUTS = {
    "encode_image": "image_embed",
    "encode_text": "text_embed",
    "fuse": "fused_pooled",
    "decode": "decoder_logits",
}
"""Method of the PyTorch model -> our name of its (first) output."""

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
shape = manifest["inputs"]["encode_image"]["pixels"][1:]
pixels = torch.zeros(2, *shape)  # normalised as manifest["image"] says
with torch.inference_mode():
    if model.text_encoder is not None:
        print(model(pixels, **inputs).softmax(dim=-1))  # how well each text fits each image
    if model.text_decoder is not None:  # the most likely token behind each token of a text
        words = model.decode(pixels, inputs["input_ids"], inputs["attention_mask"]).argmax(dim=-1)
        print(tokenizer.decode_batch(words.tolist()))
```"""

_FURTHER: dict[type, dict[str, str]] = {
    frames.Encoder: {"frame_mask": "image_present"},
    multi_image.Encoder: {"prior_pixels": "prior_image", "prior_mask": "prior_mask"},
}
"""Encoder -> its optional inputs in PyTorch and their keys in our batches."""

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(
    r"(^|/)((?:image_|text_)?block_\d+|layer\d_\d+|stage_\d+_block_\d+|(?:stage_\d+_merge|down_\d+)(?:_norm)?"
    r"|block\d_layer\d+|transition\d_(?:norm|conv))/"
)
"""The layers that lie in a ModuleDict `blocks` in PyTorch."""


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes package, manifest, weights, tokenizer and model card.

    Args:
        trained: encoders of `models`, heads of `models.heads` and `models.biovil` and, optionally,
            `fusion.CoAttention` or `causal_decoder.Decoder`.
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
    """Raises UserError listing every part that the package has no class for."""
    problems = []
    for part, allowed in torch_parts.ALLOWED.items():
        problems += torch_parts.problems(getattr(trained.model, part), allowed, f"model.{part}")
    if isinstance(trained.model.image_encoder, torch_parts.DEEP) and not trained.image.frames:
        problems.append("data.image.frames=0: this image encoder reads volumes or frames")
    if problems:
        raise UserError("this model does not fit the PyTorch package:\n  " + "\n  ".join(problems))


def write(folder: pathlib.Path, trained: Trained) -> None:
    """Fills a folder; verifies nothing."""
    exact = trained.exact()
    safetensors.numpy.save_file(tensors(exact), folder / WEIGHTS, metadata={"format": "pt"})
    facts = {
        "format": FORMAT,
        "weights": WEIGHTS,
        "model": config(exact),
        "inputs": {name: shapes(exact, given) for name, given in methods(exact).items()},
        "optional_inputs": shapes(exact, further_inputs(exact)),
    }
    exporting.write_about(folder, exact, facts)
    source = pathlib.Path(__file__).parent / "torch_package" / PACKAGE
    shutil.copytree(source, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


def methods(trained: Trained) -> dict[str, tuple[str, ...]]:
    """Method of the PyTorch model -> names of its inputs in order, for the parts that this model has."""
    model, text = trained.model, ("input_ids", "attention_mask")
    found: dict[str, tuple[str, ...]] = {"encode_image": ("pixels",)}
    if model.text_encoder is not None:
        found["encode_text"] = (*text, "word_ids") if trained.needs_words else text
        if model.fusion is not None:
            found["fuse"] = ("pixels", *text)
    if model.text_decoder is not None:
        found["decode"] = ("pixels", *text)
    return found


def further_inputs(trained: Trained) -> tuple[str, ...]:
    """Names of the optional inputs of `encode_image`, `fuse` and `decode`."""
    return tuple(_FURTHER.get(type(trained.model.image_encoder), {}))


def shapes(trained: Trained, names: Iterable[str]) -> dict[str, list[Any]]:
    """Name of each input -> its shape."""
    batch = to_torch_layout(trained, {**exporting.random_batch(trained, 1), **further(trained, 1)})
    return {name: ["batch", *batch[name].shape[1:]] for name in names}


def config(trained: Trained) -> dict[str, Any]:
    """What `medvlp_torch.VisionLanguageModel` takes."""
    model, image = trained.model, trained.image
    parts: dict[str, Any] = {
        part: torch_parts.describe(getattr(model, part), image) for part in torch_parts.ALLOWED
    }
    if parts["fusion"] is not None:
        parts["fusion"]["activation"] = "gelu"
    return {
        **parts,
        "image_pooling": model.image_pooling,
        "text_pooling": model.text_pooling,
        "last_layers": model.last_layers,
        "merge_words": model.merge_words,
        "logit_scale": trained.logit_scale,
    }


def tensors(trained: Trained) -> dict[str, np.ndarray]:
    """All weights in PyTorch's layout, named as the modules of `medvlp_torch`."""
    named = {_name(k, _LEAVES): _layout(k, v) for k, v in keys.flatten(trained.params).items()}
    statistics = keys.flatten(trained.batch_stats)
    named |= {_name(k, _STATISTICS): np.asarray(v) for k, v in statistics.items()}
    encoder: Any = trained.model.image_encoder
    prefix = "image_encoder."
    while hasattr(encoder, "tower"):
        encoder, prefix = encoder.tower, f"{prefix}tower."
    if isinstance(encoder, vit.Encoder) and encoder.positions == "sincos":
        side = trained.image.size // encoder.patch_size
        table = vit.sincos_2d(encoder.width, (side, side), cls=encoder.class_token)
        named[f"{prefix}position_embed"] = table[None].astype(np.float32)
    return {key: np.ascontiguousarray(value) for key, value in named.items()}


def _name(path: str, leaves: Mapping[str, str]) -> str:
    """`image_encoder/block_0/mlp/fc1/kernel` -> `image_encoder.blocks.block_0.mlp.fc1.weight`."""
    *parents, leaf = _BLOCK.sub(r"\1blocks/\2/", path).split("/")
    return ".".join([*parents, leaves.get(leaf, leaf)])


def _layout(path: str, value: Any) -> np.ndarray:
    """[..., in, out] of a linear layer or convolution -> [out, in, ...]; everything else as it is."""
    value = np.asarray(value)
    return np.moveaxis(value, (-1, -2), (0, 1)) if path.endswith("/kernel") else value


def load_package(folder: pathlib.Path) -> Any:
    """The PyTorch model of an export, read with its own copy of the package."""
    path = folder / PACKAGE / "__init__.py"
    if not path.is_file():
        raise UserError(f"{folder} holds no {PACKAGE}: give the folder of an export --to torch")
    name = f"_{PACKAGE}_{uuid.uuid4().hex}"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    package = importlib.util.module_from_spec(spec)
    write_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # or a __pycache__ would stay in the export
    sys.modules[name] = package
    try:
        spec.loader.exec_module(package)
        return package.load(folder)
    finally:
        sys.dont_write_bytecode = write_bytecode
        for module in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[module]


def to_torch_layout(trained: Trained, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of ours under the names and in the layout of the package, channels before the pixels."""
    encoder = type(trained.model.image_encoder)
    names = {"image": "pixels", **{ours: name for name, ours in _FURTHER.get(encoder, {}).items()}}
    # Volumes are [B, C, D, H, W], but frames are flat images: [B, T, C, H, W].
    axis = 2 if encoder is frames.Encoder else 1
    return {
        names.get(key, key): np.moveaxis(value, -1, axis) if value.ndim > 3 else value
        for key, value in batch.items()
    }


def torch_batch(trained: Trained, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The same as tensors: integers as int64."""
    import torch

    found = {}
    for key, value in to_torch_layout(trained, batch).items():
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        found[key] = tensor if tensor.is_floating_point() else tensor.long()
    return found


def further(trained: Trained, rows: int) -> dict[str, np.ndarray]:
    """The optional inputs of the image encoder in our batches; a row lacks what may be missing."""
    encoder, image = trained.model.image_encoder, trained.image
    some = np.ones(rows, np.float32)
    some[1::2] = 0
    if isinstance(encoder, frames.Encoder):
        first = np.arange(image.frames) < 1
        return {"image_present": np.where(first, 1, some[:, None]).astype(np.float32)}
    if isinstance(encoder, multi_image.Encoder):
        prior = np.random.default_rng(rows + 1).normal(size=(rows, *image.shape))
        return {"prior_image": prior.astype(np.float32), "prior_mask": some}
    return {}


def verify(folder: pathlib.Path, trained: Trained) -> float:
    """Largest difference between our outputs and the package's on random inputs, without and with the
    optional ones; needs PyTorch."""
    import torch

    model = load_package(folder)
    batch, more = exporting.random_batch(trained, 3), further(trained, 3)
    worst = 0.0
    for given in [batch, {**batch, **more}] if more else [batch]:
        ours = exporting.outputs(trained, given)
        with torch.inference_mode():
            theirs = package_outputs(model, trained, given)
        pairs = {key: (ours[key], value.numpy()) for key, value in theirs.items()}
        for key in {"fused_text_tokens", "decoder_logits"} & set(pairs):
            real = batch["attention_mask"] > 0  # states at padding mean nothing
            pairs[key] = (pairs[key][0][real], pairs[key][1][real])
        worst = np.maximum(worst, exporting.largest_difference(pairs))
    return float(worst)


def package_outputs(
    model: Any, trained: Trained, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Outputs of the package's model on a batch of ours, tensors under our names."""
    given = torch_batch(trained, batch)
    optional = {name: given[name] for name in further_inputs(trained) if name in given}
    found: dict[str, Any] = {}
    for name, inputs in methods(trained).items():
        own = {} if name == "encode_text" else optional
        result = getattr(model, name)(*[given[key] for key in inputs], **own)
        if name == "fuse":
            found |= {f"fused_{key}": value for key, value in result.items()}
        else:
            found[OUTPUTS[name]] = result
    return found


def lost_heads(trained: Trained) -> tuple[str, ...]:
    """A note on the heads of tokens, if there are any."""
    parts = ("image_token_projection", "text_token_projection")
    lost = [part for part in parts if getattr(trained.model, part) is not None]
    return (f"{' and '.join(lost)} have no place in this format and stay behind",) if lost else ()
