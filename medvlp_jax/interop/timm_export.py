"""Export of the image tower to a folder that timm loads: timm's names, a `config.json` of timm, a model card.

timm takes the architecture by name and the rest as constructor arguments, `model_args`. The folder is written
without timm and PyTorch; read back by `interop.pretrained` it has to give the same parameters and outputs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, hf_tower, keys, pretrained, timm_names
from medvlp_jax.interop.exporting import Exported, ImageInput, Trained, dump
from medvlp_jax.models import convnext, densenet, resnet, swin, vit

TOLERANCE = 1e-4
"""As `hf_tower.TOLERANCE`."""

_WRITER = "medvlp_jax --to timm"

USAGE = """\
```python
import timm
import torch
from PIL import Image

folder = "."  # this folder
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = transform(Image.open("image.png").convert("RGB")).unsqueeze(0)
with torch.inference_mode():
    print(model(image).shape)  # the pooled vector; model.forward_features gives the map or the tokens
```

The prefix `local-dir:` needs a recent timm (1.0.16 or later)."""

_READ: dict[type, tuple[str, ...]] = {
    vit.Encoder: (
        *("width", "depth", "heads", "mlp_dim", "activation", "layer_norm_eps", "patch_size"),
        *("class_token", "pooling", "positions", "registers", "layer_scale", "pre_layernorm"),
        *("qkv_bias", "patch_bias"),
    ),
    swin.Encoder: ("width", "depths", "heads", "window", "patch_size"),
    convnext.Encoder: (
        *("hidden_sizes", "depths", "patch_size", "layer_scale", "layer_norm_eps", "batch_norm"),
    ),
    resnet.Encoder: ("depths", "bottleneck", "stem_width", "token_layer"),
    densenet.Encoder: ("depths", "growth", "stem_width"),
}
"""Encoder -> the fields that the functions here write down."""

_RULES: dict[type, Sequence[keys.Rule]] = {
    vit.Encoder: vit.TIMM_RULES,
    # A Swin file without a classifier is for timm one of the released code, whose names it then changes.
    swin.Encoder: swin.ORIGINAL_RULES,
    convnext.Encoder: convnext.TIMM_RULES,
    resnet.Encoder: resnet.TORCHVISION_RULES,
    densenet.Encoder: densenet.TORCH_RULES,
}

_LAYERS: dict[type, tuple[str, str]] = {
    vit.Encoder: ("patch_embed.proj", "head"),
    swin.Encoder: ("patch_embed.proj", "head.fc"),
    convnext.Encoder: ("stem.0", "head.fc"),
    resnet.Encoder: ("conv1", "fc"),
    densenet.Encoder: ("features.conv0", "classifier"),
}
"""Encoder -> timm's names of the first convolution and of the classifier, which are part of a config."""


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes config, weights and model card of the image tower.

    Args:
        trained: its image encoder is a `vit`, `swin`, `convnext`, `resnet` or `densenet` encoder.
        folder: made; an earlier export there is replaced once the new one is verified.

    Raises:
        UserError: timm has no such tower (names the config key to change), the folder holds other files, or
            what is read back differs; nothing is left behind then.
    """
    check(trained)
    exact = without_pooler(trained.exact())
    timms = as_timm(exact)
    notes = ["timm itself did not run: the file was read back and compared with our forward pass"]
    if _has_pooler(trained):
        notes.append(
            "the tanh layer of pooling='pooler' stays behind: timm pools by the class token"
        )
    if trained.model.image_projection is not None:
        notes.append("the projection to the shared space stays behind")
    earlier = exporting.has_entry("config.json", "exported_by", _WRITER)
    with exporting.staged(folder, earlier) as new:
        _write(new, timms)
        again = read_back(new, timms)
        batch = exporting.random_batch(exact, 2)
        difference = exporting.largest_difference(
            {
                name: (ours, _outputs(again, batch)[name])
                for name, ours in _outputs(exact, batch).items()
            }
        )
        exporting.accept(difference, TOLERANCE, folder, "the form of timm")
        if hf_tower.problems(exact, "image"):
            notes.append("not compared with PyTorch: --part image does not take this tower")
        elif importlib.util.find_spec("torch") is None:
            notes.append(hf_format.UNVERIFIED)
        else:
            theirs = _difference_to_transformers(exact, again)
            exporting.accept(theirs, TOLERANCE, folder, "transformers")
            difference = max(difference, theirs)
    return Exported(
        folder=pathlib.Path(folder), verified=True, difference=difference, notes=tuple(notes)
    )


# ---------------------------------------------------------------------------------------------------
# What fits


def check(trained: Trained) -> None:
    """Raises UserError listing what timm has no tower for."""
    encoder, image, key = trained.model.image_encoder, trained.image, "model.image_encoder"
    problems: list[str] = []
    if type(encoder) not in _READ:
        problems.append(
            f"{key}.name={hf_format.kind(encoder)!r}: only 'vit', 'swin', 'convnext', 'resnet' and "
            "'densenet' go; --to torch takes any"
        )
    else:
        problems += exporting.unread(encoder, _READ[type(encoder)], key)
        problems += [f"{key}.{line}" for line in _problems(encoder, image)]
        problems += hf_format.size_problems(image, _multiple(encoder))
    if problems:
        raise UserError("timm has no such image tower:\n  " + "\n  ".join(problems))


def _multiple(encoder: Any) -> int:
    if isinstance(encoder, convnext.Encoder):
        return encoder.stride
    return getattr(encoder, "patch_size", 1)


def _problems(encoder: Any, image: ImageInput) -> list[str]:
    """What is wrong with a tower of a known kind, beginning with the field."""
    if isinstance(encoder, vit.Encoder):
        return _vit_problems(encoder)
    if isinstance(encoder, swin.Encoder):
        return _swin_problems(encoder, image)
    if isinstance(encoder, resnet.Encoder):
        wrong = encoder.stem_width != 64
        return [f"stem_width={encoder.stem_width}: timm's stem has 64 channels"] if wrong else []
    if isinstance(encoder, densenet.Encoder):
        wrong = encoder.stem_width != 2 * encoder.growth
        width = f"stem_width={encoder.stem_width}: timm's stem has {2 * encoder.growth} channels"
        return [f"{width}, twice the growth"] if wrong else []
    problems = []
    if len(encoder.depths) != 4:
        problems.append(f"depths={encoder.depths}: timm's ConvNeXt has 4 stages")
    if encoder.patch_size not in (1, 3, 4):
        # With 2 timm halves the map before its first stage, beyond 4 it stops halving at a stride of 32.
        problems.append(f"patch_size={encoder.patch_size}: timm's ConvNeXt needs 4 (or 1 or 3)")
    if encoder.layer_norm_eps > timm_names.EPS:
        problems.append(f"layer_norm_eps={encoder.layer_norm_eps:g}: timm has {timm_names.EPS:g}")
    return problems


def _vit_problems(encoder: vit.Encoder) -> list[str]:
    problems = []
    if encoder.pooling == "map" and (encoder.class_token or encoder.registers):
        # Versions of timm differ in whether that pooling sees the class token.
        problems.append("pooling='map': only with class_token=False and registers=0, as in SigLIP")
    if encoder.layer_norm_eps not in (timm_names.EPS, timm_names.CLIP_EPS):
        eps = f"{encoder.layer_norm_eps:g}"
        problems.append(
            f"layer_norm_eps={eps}: timm's ViT has {timm_names.EPS:g} or {timm_names.CLIP_EPS:g}"
        )
    if encoder.pre_layernorm and encoder.patch_bias:
        problems.append(
            "patch_bias=True: timm's ViT with pre_layernorm has no such bias; use False"
        )
    if encoder.activation not in ("gelu", "gelu_tanh", "quick_gelu"):
        problems.append(f"activation={encoder.activation!r}: use gelu, gelu_tanh or quick_gelu")
    return problems


def _swin_problems(encoder: swin.Encoder, image: ImageInput) -> list[str]:
    problems = []
    if len(encoder.depths) > 4:
        problems.append(f"depths={encoder.depths}: at most 4 stages have names")
    grid = image.size // encoder.patch_size
    for stage in range(len(encoder.depths)):
        if grid % (2**stage * encoder.window):
            # timm shifts a map before it pads it, the published code and we pad first.
            problems.append(
                f"window={encoder.window}: the grid of stage {stage + 1} at {image.size} px must be a "
                "multiple of it; change data.image.size or the window"
            )
            break
    return problems


# ---------------------------------------------------------------------------------------------------
# The same tower in timm's form


def _has_pooler(trained: Trained) -> bool:
    return getattr(trained.model.image_encoder, "pooling", None) == "pooler"


def without_pooler(trained: Trained) -> Trained:
    """The same with a ViT that pools by the class token, if a tanh layer came behind it."""
    if not _has_pooler(trained):
        return trained
    encoder: Any = trained.model.image_encoder
    own = {k: v for k, v in trained.params["image_encoder"].items() if k != "pooler"}
    return dataclasses.replace(
        trained,
        model=trained.model.clone(image_encoder=encoder.clone(pooling="cls")),
        params={**trained.params, "image_encoder": own},
    )


def as_timm(trained: Trained) -> Trained:
    """The same image tower with the parameters and constants that timm's has.

    Args:
        trained: from `Trained.exact` and `without_pooler`.

    Returns:
        A fixed position table became a learned one; a missing patch bias zeros, a missing layer scale ones;
        with registers, which in timm have no part in the position table, the class token took over its
        position. ConvNeXt's last norm has timm's epsilon.
    """
    encoder: Any = trained.model.image_encoder
    params = dict(trained.params["image_encoder"])
    if isinstance(encoder, vit.Encoder):
        encoder, params = _vit_as_timm(encoder, params, trained.image)
    elif isinstance(encoder, convnext.Encoder):
        if not encoder.layer_scale:
            params = {
                name: {**value, "layer_scale": np.ones_like(value["fc2"]["bias"])}
                if "_block_" in name
                else value
                for name, value in params.items()
            }
        encoder = encoder.clone(
            layer_norm_eps=timm_names.EPS, layer_scale=encoder.layer_scale or 1.0
        )
    return dataclasses.replace(
        trained,
        model=trained.model.clone(image_encoder=encoder),
        params={**trained.params, "image_encoder": params},
    )


def _vit_as_timm(
    encoder: vit.Encoder, params: dict[str, Any], image: ImageInput
) -> tuple[vit.Encoder, dict[str, Any]]:
    if encoder.positions == "sincos":
        side = image.size // encoder.patch_size
        table = vit.sincos_2d(encoder.width, (side, side), cls=encoder.class_token)
        params["position_embed"] = table[None].astype(np.float32)
    if not encoder.patch_bias and not encoder.pre_layernorm:
        zeros = np.zeros(encoder.width, np.float32)
        params["patch_embed"] = {**params["patch_embed"], "bias": zeros}
    if encoder.registers and encoder.class_token:
        table = np.array(params["position_embed"])
        params["cls_token"] = params["cls_token"] + table[:, :1]
        table[:, :1] = 0
        params["position_embed"] = table
    bias = not encoder.pre_layernorm
    return encoder.clone(positions="learned", patch_bias=bias), params


def tensors(trained: Trained) -> dict[str, np.ndarray]:
    """Tensors with timm's names; `trained` is from `as_timm`."""
    encoder, params = trained.model.image_encoder, trained.params["image_encoder"]
    named = keys.to_torch(params, _RULES[type(encoder)])
    if "image_encoder" in trained.batch_stats:
        running = keys.to_torch(trained.batch_stats["image_encoder"], _RULES[type(encoder)])
        means = [key.removesuffix("running_mean") for key in running if key.endswith("_mean")]
        named |= running | {f"{key}num_batches_tracked": np.asarray(0, np.int64) for key in means}
    if "register_tokens" in named:
        named["reg_token"] = named.pop("register_tokens")
        if "cls_token" in named:
            named["pos_embed"] = np.ascontiguousarray(named["pos_embed"][:, 1:])
    return named


# ---------------------------------------------------------------------------------------------------
# Config


def config(trained: Trained) -> dict[str, Any]:
    """config.json as timm writes it; `trained` is from `as_timm`."""
    encoder, image = trained.model.image_encoder, trained.image
    name, arguments = timm_names.architecture(encoder, image)
    first, classifier = _LAYERS[type(encoder)]
    processor = hf_format.image_processor(image)
    return {
        "architecture": name,
        "exported_by": _WRITER,
        "num_classes": 0,
        "num_features": _width(encoder),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "input_size": [image.channels, image.size, image.size],
            "fixed_input_size": isinstance(encoder, vit.Encoder | swin.Encoder),
            "interpolation": "bilinear",  # as hf_format.image_processor, which says why
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": processor["image_mean"],
            "std": processor["image_std"],
            "num_classes": 0,
            "pool_size": None,
            "first_conv": first,
            "classifier": classifier,
        },
    }


def _width(encoder: Any) -> int:
    if isinstance(encoder, swin.Encoder):
        return encoder.width * 2 ** (len(encoder.depths) - 1)
    if isinstance(encoder, resnet.Encoder):
        return encoder.stem_width * 8 * (4 if encoder.bottleneck else 1)
    if isinstance(encoder, densenet.Encoder):
        width = encoder.stem_width
        for depth in encoder.depths[:-1]:
            width = (width + depth * encoder.growth) // 2
        return width + encoder.depths[-1] * encoder.growth
    return encoder.width


def _write(folder: pathlib.Path, trained: Trained) -> None:
    dump(folder / "config.json", config(trained))
    metadata = {"format": "pt"}
    safetensors.numpy.save_file(tensors(trained), folder / "model.safetensors", metadata=metadata)
    (folder / "README.md").write_text(trained.card, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------
# Verification


def read_back(folder: pathlib.Path, trained: Trained) -> Trained:
    """`trained`, from `as_timm`, with the image tower's weights as `interop.pretrained` reads the folder.

    Raises:
        UserError: they are not bit by bit those of `trained`.
    """
    own = {"params": trained.params["image_encoder"]}
    if "image_encoder" in trained.batch_stats:
        own["batch_stats"] = trained.batch_stats["image_encoder"]
    loaded = pretrained.load(trained.model.image_encoder, own, str(folder))
    flat, again = keys.flatten(own), keys.flatten(loaded.variables)
    wrong = sorted(set(flat) ^ set(again)) + list(loaded.random)
    wrong += [p for p in flat if p in again and not np.array_equal(flat[p], again[p])]
    if wrong:
        raise UserError(
            f"{folder} reads back differently in {', '.join(wrong)}; please report this"
        )
    return dataclasses.replace(
        trained,
        params={**trained.params, "image_encoder": loaded.variables["params"]},
        batch_stats={
            **trained.batch_stats,
            **({"image_encoder": loaded.variables["batch_stats"]} if "batch_stats" in own else {}),
        },
    )


def _outputs(trained: Trained, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our `tokens` and `pooled` of the image tower."""
    variables = {"params": trained.params["image_encoder"]}
    if "image_encoder" in trained.batch_stats:
        variables["batch_stats"] = trained.batch_stats["image_encoder"]
    encoder: Any = exporting.float32(trained.model).image_encoder
    with jax.default_matmul_precision("highest"):
        got: Any = encoder.apply(variables, batch["image"])
    return {name: np.asarray(got[name]) for name in ("tokens", "pooled")}


def _difference_to_transformers(exact: Trained, again: Trained) -> float:
    """Largest difference between `again` and what `--to hf --part image` makes of `exact`; needs PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        done = hf_tower.export(exact, pathlib.Path(folder) / "hf", "image")
        found = hf_tower.verify(done.folder, again, "image")
    return found if not math.isnan(found) else math.inf
