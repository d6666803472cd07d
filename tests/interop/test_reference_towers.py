"""Without these, weights of torchvision, timm or open_clip could load without an error and compute something
else. Their models run in a process of their own, see reference_towers.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.interop import formats, pretrained
from medvlp_jax.models import clip_resnet, clip_text, convnext, densenet, resnet, swin, vit

pytest.importorskip("torch")

SCRIPT = pathlib.Path(__file__).parent / "reference_towers.py"
PACKAGES = pathlib.Path(sys.prefix) / "parity"


def run_script(*arguments: object) -> None:
    if not PACKAGES.is_dir():
        pytest.skip(
            f"needs timm, torchvision and open_clip in {PACKAGES}, which ./run.sh test installs"
        )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def short(module: Any, variant: str, **fields: Any) -> Any:
    return module.Encoder(**{**module.VARIANTS[variant], **fields})


ENCODERS = {
    "torchvision resnet18": short(resnet, "18"),
    "torchvision resnet50": short(resnet, "50"),
    "torchvision densenet121": short(densenet, "121"),
    "timm resnet50": short(resnet, "50"),
    "timm densenet121": short(densenet, "121"),
    "timm swin": short(swin, "T"),
    "timm convnext": short(convnext, "T", layer_norm_eps=1e-6),
    "timm vit": short(vit, "S/16", depth=3, pooling="cls"),
    "timm dinov2": short(vit, "dinov2-S/14-reg", depth=3, pooling="cls"),
    "timm clip": short(vit, "clip-B/16", depth=3, activation="gelu"),
    # timm computes the exact GELU in its own SigLIP, transformers the approximation.
    "timm siglip": short(vit, "siglip-B/16", depth=3, activation="gelu"),
}


QUICK = ("torchvision resnet18", "timm vit", "timm dinov2")
CASES = [
    pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in ENCODERS
]


def close(ours: Any, theirs: np.ndarray) -> None:
    """Relative error of the whole array: float32 sums of some hundred layers differ in their last bits."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def load(encoder: Any, folder: pathlib.Path, *inputs: Any) -> tuple[Any, Any]:
    """Our outputs with the weights of the script, and the report of the import."""
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), *inputs))
    loaded = pretrained.load(encoder, dict(shapes), str(folder / "weights.safetensors"))
    assert not loaded.random
    with jax.default_matmul_precision("highest"):
        return encoder.apply(loaded.variables, *inputs), loaded


@pytest.mark.parametrize("name", CASES)
def test_same_outputs_with_their_weights(name: str, tmp_path) -> None:
    run_script("make", name, tmp_path)
    theirs = np.load(tmp_path / "outputs.npz")
    ours, _ = load(ENCODERS[name], tmp_path, theirs["image"])
    close(ours["pooled"], theirs["pooled"])
    if "tokens" in theirs and isinstance(ENCODERS[name], vit.Encoder):
        close(ours["tokens"], theirs["tokens"])


@pytest.mark.parametrize("kind", ["RN", "ViT"])
def test_both_towers_of_open_clip(kind: str, tmp_path) -> None:
    run_script("make", f"open_clip {kind}", tmp_path)
    theirs = np.load(tmp_path / "outputs.npz")
    if kind == "RN":
        image = clip_resnet.Encoder(depths=(1, 1, 1, 1), stem_width=8, output_dim=32)
    else:
        sizes = dict(width=64, depth=2, heads=2, mlp_dim=256, patch_size=16)
        image = short(vit, "clip-B/16", **sizes)
    ours, loaded = load(image, tmp_path, theirs["image"])
    assert loaded.prefix == "visual."
    pooled = ours["pooled"]
    close(pooled @ theirs["projection"] if kind == "ViT" else pooled, theirs["pooled"])
    text = clip_text.Encoder(
        width=64, depth=2, heads=2, mlp_dim=256, vocab_size=64, max_positions=16, eos_token_id=63
    )
    ids = jnp.asarray(theirs["ids"], jnp.int32)
    mask = jnp.asarray([[1] * 4 + [0] * 12, [1] * 16], jnp.int32)
    ours, _ = load(text, tmp_path, ids, mask)
    close(ours["pooled"] @ theirs["text_projection"], theirs["text"])


EXPORTS = {
    "vit": short(vit, "test/8", pooling="cls"),
    "dinov2": short(vit, "test/8", pooling="cls", layer_scale=0.5, registers=2),
    "siglip": short(vit, "test/8", class_token=False, pooling="map", patch_bias=True),
    "resnet": short(resnet, "18"),
    "convnext": convnext.Encoder(
        hidden_sizes=(16, 24, 32, 40),
        depths=(1, 1, 2, 1),
        patch_size=4,
        layer_scale=1.0,
        batch_norm=True,
    ),
    "swin": swin.Encoder(width=16, depths=(2, 2), heads=(2, 4), window=4),
    "densenet": densenet.Encoder(depths=(2, 1, 2), growth=6, stem_width=12),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_timm_loads_our_export(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(image_encoder=EXPORTS[name])
    formats.export(trained, tmp_path / "out", to="timm", part="both")
    run_script("timm", tmp_path / "out", tmp_path)
    theirs = np.load(tmp_path / "outputs.npz")
    variables = {"params": trained.params["image_encoder"]}
    if "image_encoder" in trained.batch_stats:
        variables["batch_stats"] = trained.batch_stats["image_encoder"]
    with jax.default_matmul_precision("highest"):
        ours = EXPORTS[name].apply(variables, theirs["image"])
    close(ours["pooled"], theirs["pooled"])
