"""PyTorch's side of the parity tests with torchvision, timm and open_clip, run in a process of its own.

    python reference_towers.py make NAME FOLDER    # weights.safetensors and outputs.npz of a random model
    python reference_towers.py timm EXPORT FOLDER  # outputs.npz of an export that timm loads

The published torchvision wheel wants another build of PyTorch. Its models are plain Python, though, so the
two operators that it looks up when imported are declared here. Never where transformers is used.
"""

from __future__ import annotations

import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from random_weights import randomise

warnings.simplefilter("ignore")
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

Output = dict[str, torch.Tensor]


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def torchvision_model(name: str, head: str) -> tuple[Any, Callable[[Any, torch.Tensor], Output]]:
    import torchvision.models

    def run(model: Any, x: torch.Tensor) -> Output:
        setattr(model, head, torch.nn.Identity())
        return {"pooled": model(x)}

    return getattr(torchvision.models, name)(weights=None), run


def run_timm(model: Any, x: torch.Tensor) -> Output:
    features = model.forward_features(x)
    found = {"pooled": model.forward_head(features, pre_logits=True)}
    if features.ndim == 3:
        found["tokens"] = features[:, model.num_prefix_tokens :]
    return found


def timm_model(name: str, **options: Any) -> tuple[Any, Callable[[Any, torch.Tensor], Output]]:
    import timm

    return timm.create_model(name, **options), run_timm


def open_clip_model(vision: dict[str, Any]) -> tuple[Any, Callable[[Any, torch.Tensor], Output]]:
    from open_clip.model import CLIP

    text = dict(context_length=16, vocab_size=64, width=64, heads=2, layers=2)
    model = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)

    def run(model: Any, x: torch.Tensor) -> Output:
        ids = torch.tensor([[60, 5, 9, 63] + [0] * 12, [60, *range(1, 15), 63]])
        found = {"ids": ids, "text": model.encode_text(ids)}
        found["text_projection"] = model.text_projection
        found["pooled"] = model.encode_image(x)
        if hasattr(model.visual, "proj"):
            found["projection"] = model.visual.proj
        return found

    return model, run


MODELS: dict[str, tuple[int, Callable[[], tuple[Any, Callable[[Any, torch.Tensor], Output]]]]] = {
    "torchvision resnet18": (64, lambda: torchvision_model("resnet18", "fc")),
    "torchvision resnet50": (64, lambda: torchvision_model("resnet50", "fc")),
    "torchvision densenet121": (64, lambda: torchvision_model("densenet121", "classifier")),
    "timm resnet50": (64, lambda: timm_model("resnet50")),
    "timm densenet121": (64, lambda: timm_model("densenet121")),
    "timm swin": (224, lambda: timm_model("swin_tiny_patch4_window7_224")),
    "timm convnext": (64, lambda: timm_model("convnext_tiny")),
    "timm vit": (64, lambda: timm_model("vit_small_patch16_224", img_size=64, depth=3)),
    "timm dinov2": (
        56,
        lambda: timm_model("vit_small_patch14_reg4_dinov2", img_size=56, depth=3),
    ),
    "timm clip": (64, lambda: timm_model("vit_base_patch16_clip_224", img_size=64, depth=3)),
    "timm siglip": (64, lambda: timm_model("vit_base_patch16_siglip_224", img_size=64, depth=3)),
    "open_clip RN": (
        64,
        lambda: open_clip_model(dict(layers=[1, 1, 1, 1], width=8, image_size=64, head_width=64)),
    ),
    "open_clip ViT": (
        64,
        lambda: open_clip_model(
            dict(layers=2, width=64, head_width=32, patch_size=16, image_size=64)
        ),
    ),
}


def make(name: str, folder: pathlib.Path) -> None:
    size, build = MODELS[name]
    model, run = build()
    randomise(model)
    tensors = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors")
    save_outputs(lambda x: run(model, x), pixels(size), folder)


def save_outputs(
    run: Callable[[torch.Tensor], Output], x: torch.Tensor, folder: pathlib.Path
) -> None:
    with torch.inference_mode():
        found = {key: value.numpy() for key, value in run(x).items()}
    np.savez(folder / "outputs.npz", image=x.permute(0, 2, 3, 1).numpy(), **found)


def load_with_timm(export: pathlib.Path, folder: pathlib.Path) -> None:
    import timm

    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    size = model.pretrained_cfg["input_size"][-1]
    save_outputs(lambda x: run_timm(model, x), pixels(size), folder)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], pathlib.Path(sys.argv[3]))
    else:
        load_with_timm(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
