"""What every export shares: the trained model, a folder that appears once verified, our own outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import convnext
from medvlp_jax.models.vision_language import VisionLanguageModel, innermost

MANIFEST = "manifest.json"
"""File that says what an export is, in the formats that have no config file of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How images reach the encoder: side in pixels, channels, and mean and std in units of [0, 1].

    `frames` is the number of slices of a volume, frames of a clip or images of a study; 0 = flat images.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, (H, W, C) or (frames, H, W, C)."""
        frames = (self.frames,) if self.frames else ()
        return (*frames, self.size, self.size, self.channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did.

    Attributes:
        folder: where it is.
        verified: whether it was loaded again and gave the same outputs.
        difference: largest difference of an output's entry; NaN when not verified.
        notes: what the user should know, one sentence each.
    """

    folder: pathlib.Path
    verified: bool
    difference: float
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with all that an export writes down.

    Attributes:
        model: encoders, heads and, optionally, a fusion encoder.
        params: its parameters (`variables["params"]["model"]`).
        batch_stats: its running statistics, empty without BatchNorm.
        tokenizer: from `data.text`.
        image: see `ImageInput`.
        max_length: tokens per text.
        logit_scale: factor of the cosine, already exponentiated.
        card: text of README.md, from `model_card`.
        logit_bias: what the loss adds to the scaled cosine; None without such a term.
    """

    model: VisionLanguageModel
    params: Mapping[str, Any]
    tokenizer: Any
    image: ImageInput
    max_length: int
    logit_scale: float
    card: str
    batch_stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    logit_bias: float | None = None

    @property
    def needs_words(self) -> bool:
        """Whether the text embedding depends on which pieces form a word (GLoRIA)."""
        return self.model.merge_words and self.model.text_pooling == "mean"

    def exact(self) -> Trained:
        """The same on the host in float32, without the token heads and with BatchNorms folded that can be.

        Raises:
            UserError: a BatchNorm without running statistics.
        """
        host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(self.params))
        stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(self.batch_stats))
        model = float32(self.model)
        encoder, params, own = _folded(
            model.image_encoder, host["image_encoder"], stats.pop("image_encoder", None)
        )
        model, host["image_encoder"] = model.clone(image_encoder=encoder), params
        if own is not None:
            stats["image_encoder"] = own
        unused = ("image_token_projection", "text_token_projection")
        return dataclasses.replace(
            self,
            model=model,
            params={name: value for name, value in host.items() if name not in unused},
            batch_stats={name: value for name, value in stats.items() if name not in unused},
        )


def _folded(encoder: Any, params: Any, stats: Any) -> tuple[Any, Any, Any]:
    """An image encoder, its parameters and statistics, with a BatchNorm of ConvNeXt in the weights."""
    if hasattr(encoder, "tower"):
        own = None if stats is None else stats["tower"]
        tower, inner, own = _folded(encoder.tower, params["tower"], own)
        stats = None if own is None else {"tower": own}
        return encoder.clone(tower=tower), {**params, "tower": inner}, stats
    if not isinstance(encoder, convnext.Encoder) or not encoder.batch_norm:
        return encoder, params, stats
    if stats is None:
        raise UserError("the image encoder has BatchNorm: pass its running statistics, batch_stats")
    return encoder.clone(batch_norm=False), convnext.fold(params, stats), None


def with_fields(module: Any, **values: Any) -> Any:
    """A module, and the towers inside of it, with other values of those fields that each of them has."""
    own = {k: v for k, v in values.items() if hasattr(module, k)}
    if hasattr(module, "tower"):
        own["tower"] = with_fields(module.tower, **values)
    return module.clone(**own)


def float32(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model with float32 arithmetic in the parts that are exported, and without the token heads."""
    parts = (
        *("image_encoder", "text_encoder", "image_projection", "text_projection"),
        *("fusion", "text_decoder", "context_projection"),
    )
    exact = {
        name: with_fields(getattr(model, name), dtype=jnp.float32)
        for name in parts
        if getattr(model, name) is not None
    }
    return model.clone(**exact, image_token_projection=None, text_token_projection=None)


_TRAINING_ONLY = {
    "name",
    "parent",
    "dropout",
    "attention_dropout",
    "drop_path",
    "init_std",
    "frozen_bn",
    "remat",
    "attention",
    "last_attention",
    "dtype",
}
"""Fields of our modules that change nothing about the function that a trained model computes."""


def unread(module: Any, read: Sequence[str], key: str) -> list[str]:
    """One line for each field that differs from its default and that a format does not know.

    Without it a new option of an encoder would be lost in an export, and only the comparison of outputs would
    notice.

    Args:
        module: encoder or head.
        read: fields that the format writes down.
        key: config key of the module.
    """
    return [
        f"{key}.{field.name}={getattr(module, field.name)!r}: not in this format, --to jax takes it"
        for field in dataclasses.fields(module)
        if field.name not in _TRAINING_ONLY
        and field.name not in read
        and getattr(module, field.name) != field.default
    ]


# ---------------------------------------------------------------------------------------------------
# The folder


@contextlib.contextmanager
def staged(
    folder: str | os.PathLike[str], is_earlier: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
    """Gives a folder to write to, which takes the place of `folder` at the end and vanishes on any error.

    Args:
        folder: where the export shall be.
        is_earlier: whether a folder that is there is an earlier export and may be replaced.

    Raises:
        UserError: the folder holds anything else.
    """
    folder = pathlib.Path(folder)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not is_earlier(folder):
        raise UserError(f"{folder} exists and is no earlier export: choose another folder")
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def has_entry(name: str, key: str, *values: str) -> Callable[[pathlib.Path], bool]:
    """Whether the JSON file `name` of a folder says one of `values` at `key`: for `staged`."""

    def test(folder: pathlib.Path) -> bool:
        try:
            return json.loads((folder / name).read_text(encoding="utf-8")).get(key) in values
        except (OSError, ValueError, AttributeError):
            return False

    return test


def dump(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes JSON as transformers formats it."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def accept(difference: float, tolerance: float, folder: str | os.PathLike[str], where: str) -> None:
    """Raises UserError unless `difference` is at most `tolerance` (NaN is not)."""
    if not difference <= tolerance:
        raise UserError(
            f"the export gives other embeddings in {where} (difference {difference:.2g}, allowed "
            f"{tolerance:g}), so {folder} was not written; please report this with the config"
        )


def write_about(folder: pathlib.Path, trained: Trained, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes manifest, tokenizer and model card of an export of our own format.

    Args:
        folder: where.
        trained: the model.
        facts: what the format adds to the manifest, first of all `format`.

    Returns:
        The manifest.
    """
    version = importlib.metadata.version("medvlp_jax")
    manifest = {**facts, "medvlp_jax_version": version, **describe_inputs(trained)}
    dump(folder / MANIFEST, manifest)
    trained.tokenizer.save_pretrained(folder, trained.max_length)
    (folder / "README.md").write_text(trained.card, encoding="utf-8")
    return manifest


def describe_inputs(trained: Trained) -> dict[str, Any]:
    """The part of a manifest that says how images and texts become inputs."""
    image = trained.image
    return {
        "image": {
            "size": image.size,
            "channels": image.channels,
            "frames": image.frames,
            "mean": [float(v) for v in image.mean],
            "std": [float(v) for v in image.std],
            "normalisation": "(pixel / 255 - mean) / std per channel; shorter side resized, centre cropped",
        },
        "text": {
            "max_length": trained.max_length,
            "tokenizer": "tokenizer.json",
            "pad_token_id": trained.tokenizer.pad_token_id,
        },
        "logit_scale": trained.logit_scale,
    }


# ---------------------------------------------------------------------------------------------------
# Our own outputs


def random_batch(trained: Trained, rows: int) -> dict[str, np.ndarray]:
    """Normalised images and texts of `rows` pairs; every second text is padded."""
    rng = np.random.default_rng(rows)
    image, length = trained.image, trained.max_length
    text = innermost(trained.model.text_encoder or trained.model.text_decoder)
    pad = trained.tokenizer.pad_token_id
    ids = rng.integers(0, text.vocab_size, (rows, length)).astype(np.int32)
    # transformers' RoBERTa takes every pad id for padding, whatever the mask says.
    ids[ids == pad] = (pad + 1) % text.vocab_size
    mask = np.ones_like(ids)
    mask[1::2, max(1, length // 2) :] = 0
    # CLIP reads a text at its closing token.
    ids[np.arange(rows), mask.sum(axis=1) - 1] = trained.tokenizer.sep_token_id
    words = np.where(mask > 0, np.arange(length) // 2 - 1, -1).astype(np.int32)
    return {
        "image": rng.normal(size=(rows, *image.shape)).astype(np.float32),
        "input_ids": np.where(mask > 0, ids, pad).astype(np.int32),
        "attention_mask": mask,
        "word_ids": words,
    }


def outputs(trained: Trained, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of our own forward pass with full float32 products."""
    variables = {"params": trained.params, "batch_stats": trained.batch_stats}
    with jax.default_matmul_precision("highest"):
        got: Any = float32(trained.model).apply(variables, dict(batch))
    return {k: np.asarray(v) for k, v in got.items() if not isinstance(v, tuple)}


def largest_difference(pairs: Mapping[str, tuple[Any, Any]]) -> float:
    """Largest difference of an entry, relative to the largest entry of an output where that is above 1."""
    worst = 0.0
    for ours, theirs in pairs.values():
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        if ours.shape != theirs.shape:
            return float("inf")
        # A plain max() would let a NaN pass.
        worst = np.maximum(worst, np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    return float(worst)
