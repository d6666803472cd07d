"""Without these, a model rebuilt in PyTorch from an export could give other embeddings than ours."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, torch_export, torch_parts
from medvlp_jax.models import bert, biovil, clip_text, convnext, frames, heads, resnet, vit

torch = pytest.importorskip("torch")

BERT = {**bert.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
CLIP_TEXT = {**clip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}


def embed(folder, trained, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the package of a folder on a batch."""
    model = torch_export.load_package(folder)
    with torch.inference_mode():
        got = torch_export.package_outputs(model, trained, batch)
    return {key: value.numpy() for key, value in got.items()}


def test_package_gives_our_outputs(any_trained, tmp_path) -> None:
    done = torch_export.export(any_trained, tmp_path / "out")
    assert done.verified
    assert done.difference <= torch_export.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    batch = exporting.random_batch(any_trained, 5)
    ours = exporting.outputs(any_trained, batch)
    for key, value in embed(done.folder, any_trained, batch).items():
        if key == "fused_text_tokens":
            continue  # states at padding mean nothing
        np.testing.assert_allclose(
            value, ours[key], atol=1e-5 * max(1, np.abs(value).max()), rtol=1e-4
        )
        assert np.abs(value[0] - value[1]).max() > 1e-3  # the inputs do matter


MORE: dict[str, dict[str, Any]] = {
    "vit, pooler and biases": dict(
        image_encoder=vit.Encoder(
            **{**vit.VARIANTS["test/8"], "pooling": "pooler", "layer_norm_eps": 1e-3}
        ),
        image_projection=heads.LinearProjection(24, use_bias=True),
    ),
    "vit, mean of the patches with class token": dict(
        image_encoder=vit.Encoder(**{**vit.VARIANTS["test/8"], "pooling": "mean"})
    ),
    "deeper basic resnet": dict(
        image_encoder=resnet.Encoder(depths=(2, 2, 1, 2), bottleneck=False, stem_width=8)
    ),
    "convnext without scale, three stages": dict(
        image_encoder=convnext.Encoder(
            hidden_sizes=(8, 16, 24), depths=(1, 2, 1), patch_size=4, layer_scale=0.0
        )
    ),
    "dinov2": dict(
        image_encoder=vit.Encoder(**vit.VARIANTS["test/8"], layer_scale=1.0, registers=3)
    ),
    "registers alone": dict(
        image_encoder=vit.Encoder(
            **{**vit.VARIANTS["test/8"], "class_token": False, "pooling": "mean"}, registers=2
        )
    ),
    "siglip": dict(
        image_encoder=vit.Encoder(
            **{**vit.VARIANTS["test/8"], "class_token": False, "pooling": "map"},
            activation="gelu_tanh",
        )
    ),
    "tanh gelu": dict(
        image_encoder=vit.Encoder(**{**vit.VARIANTS["test/8"], "activation": "gelu_tanh"})
    ),
    "last token": dict(text_encoder=bert.Encoder(**BERT, pooling="eos")),
    "attention pooling": dict(text_encoder=bert.Encoder(**BERT, pooling="attention")),
    "clip text, highest id": dict(text_encoder=clip_text.Encoder(**CLIP_TEXT)),
    "clip text, eos id": dict(text_encoder=clip_text.Encoder(**CLIP_TEXT, eos_token_id=7)),
    "gelu head": dict(text_projection=heads.MLPProjection(24, activation="gelu")),
    "head without biases": dict(text_projection=heads.MLPProjection(24, use_bias=False)),
    "text mean over the tokens": dict(text_pooling="mean", last_layers=3),
    "mean of the projected patches": dict(
        image_encoder=resnet.Encoder(**resnet.VARIANTS["test"]),
        image_projection=biovil.ImageProjection(24),
        image_pooling="projected_mean",
    ),
    "roberta": dict(
        text_encoder=bert.Encoder(**BERT, position_ids="roberta", padding_idx=3, token_types=1)
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_each_option_counts(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(**MORE[name])
    assert torch_export.export(trained, tmp_path / "out").difference <= torch_export.TOLERANCE


def test_each_tower_gives_our_outputs(any_tower, tmp_path) -> None:
    done = torch_export.export(any_tower, tmp_path / "out")
    assert done.difference <= torch_export.TOLERANCE
    batch = exporting.random_batch(any_tower, 3)
    for value in embed(done.folder, any_tower, batch).values():
        assert np.abs(value[0] - value[1]).max() > 1e-3  # the inputs do matter


CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("size", ["", "smoke"])
@pytest.mark.parametrize("name", [*CONFIGS, "mgca.py:image=resnet"])
def test_every_system_fits(name: str, size: str, root, small_tokenizer, make_trained) -> None:
    from medvlp_jax import build, config

    file, _, argument = name.partition(".py:")
    arguments = ",".join(filter(None, (argument, size)))
    settings = config.load_config(str(root / "configs" / f"{file}.py") + ":" + arguments, [])
    model = build.build_system(settings, small_tokenizer).model
    image = settings.data.image
    count = image.get("frames", 0) or (image.get("per_study", 1) > 1) * image.get("per_study", 1)
    trained = make_trained()
    given = dataclasses.replace(trained.image, frames=count)
    torch_export.check(dataclasses.replace(trained, model=model, image=given))


def test_states_of_the_towers_are_ours(make_trained, tmp_path) -> None:
    trained = make_trained("convirt")
    done = torch_export.export(trained, tmp_path / "out")
    batch = exporting.random_batch(trained, 2)
    ours = exporting.outputs(trained, batch)
    model = torch_export.load_package(done.folder)
    with torch.inference_mode():
        out = model.image_encoder(torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()))
    scale = np.abs(ours["image_tokens"]).max()
    np.testing.assert_allclose(
        out["tokens"].numpy() / scale, ours["image_tokens"] / scale, atol=1e-5
    )


def test_an_empty_text_is_finite_and_ours(make_trained, tmp_path) -> None:
    trained = make_trained("convirt")
    done = torch_export.export(trained, tmp_path / "out")
    batch = exporting.random_batch(trained, 2)
    batch["attention_mask"][1] = 0
    ours = exporting.outputs(trained, batch)["text_embed"]
    model = torch_export.load_package(done.folder)
    ids, mask = (torch.from_numpy(batch[k]).long() for k in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        got = model.encode_text(ids, mask).numpy()
    np.testing.assert_allclose(got, ours, atol=1e-5)


def test_it_trains(make_trained, tmp_path) -> None:
    done = torch_export.export(make_trained("convirt"), tmp_path / "out")
    model = torch_export.load_package(done.folder).train()
    ids = torch.ones(3, 16, dtype=torch.long)
    logits = model(torch.randn(3, 3, 32, 32), ids, ids)
    logits.diagonal().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None]
    # Max pooling does not read the pooler, so this model has none: every weight is used.
    assert not still


def test_the_files_need_torch_and_safetensors_only(root) -> None:
    folder = root / "medvlp_jax" / "interop" / "torch_package" / torch_export.PACKAGE
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"torch", "safetensors"}


@pytest.mark.parametrize("name", ["gloria", "captioner of frames"])
def test_the_code_of_the_card_runs_without_our_package(
    name: str, make_trained, tmp_path, usage_code
) -> None:
    done = torch_export.export(make_trained(name), tmp_path / "out")
    assert {p.name for p in done.folder.iterdir()} == {
        "README.md",
        "manifest.json",
        "medvlp_torch",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(p.suffix == ".py" for p in (done.folder / "medvlp_torch").iterdir())
    block = (
        "import sys\nfor name in ('medvlp_jax', 'jax', 'transformers'): sys.modules[name] = None\n"
    )
    ran = subprocess.run(
        [sys.executable, "-B", "-c", block + usage_code(torch_export.USAGE)],
        cwd=done.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("tensor([[" if name == "gloria" else "['")


def test_reading_an_export_leaves_no_trace(make_trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    done = torch_export.export(make_trained(), tmp_path / "out")
    before = set(sys.modules)
    torch_export.load_package(done.folder)
    assert not {name for name in set(sys.modules) - before if "medvlp_torch" in name}
    assert not list(done.folder.rglob("__pycache__"))
    assert not sys.dont_write_bytecode
    with pytest.raises(UserError, match="holds no medvlp_torch"):
        torch_export.load_package(tmp_path)


def test_what_does_not_fit_is_named(make_trained, tmp_path) -> None:
    class Encoder(nn.Module):
        pass

    trained = make_trained()
    changed = trained.model.clone(
        image_encoder=Encoder(), text_projection=heads.ItmHead(), fusion=heads.ItmHead()
    )
    with pytest.raises(UserError, match="vit, resnet, clip_resnet") as error:
        torch_export.export(dataclasses.replace(trained, model=changed), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 4
    assert not list(tmp_path.iterdir())


def test_an_option_that_the_file_does_not_know_is_refused(make_trained, monkeypatch) -> None:
    name, fields = torch_parts.FIELDS[vit.Encoder]
    known = {vit.Encoder: (name, tuple(f for f in fields if f != "registers"))}
    monkeypatch.setattr(torch_parts, "FIELDS", {**torch_parts.FIELDS, **known})
    encoder = vit.Encoder(**vit.VARIANTS["test/8"], registers=2)
    with pytest.raises(UserError, match=r"model\.image_encoder\.registers=2"):
        torch_export.check(make_trained(image_encoder=encoder))
    with pytest.raises(UserError, match=r"model\.image_encoder\.tower\.registers=2"):
        torch_export.check(make_trained(image_encoder=frames.Encoder(encoder), frames=2))
    monkeypatch.setattr(torch_parts, "_VALUES", {"pooling": ("mean",)})
    with pytest.raises(UserError, match=r"model\.text_encoder\.pooling='pooler': only mean"):
        torch_export.check(make_trained())


def test_frames_need_a_number_and_a_tower_of_flat_images(make_trained) -> None:
    trained = make_trained("vit3d")
    flat = dataclasses.replace(trained.image, frames=0)
    with pytest.raises(UserError, match=r"data\.image\.frames=0"):
        torch_export.check(dataclasses.replace(trained, image=flat))
    changed = trained.model.clone(image_encoder=frames.Encoder(trained.model.image_encoder))
    with pytest.raises(UserError, match=r"model\.image_encoder\.tower is vit3d: only vit, resnet"):
        torch_export.check(dataclasses.replace(trained, model=changed))


def test_every_part_of_a_model_has_a_class_in_the_package(root) -> None:
    """A new encoder, projection, fusion or causal decoder belongs to the table of `torch_parts`."""
    missing = set()
    for path in (root / "medvlp_jax" / "models").glob("*.py"):
        module = importlib.import_module(f"medvlp_jax.models.{path.stem}")
        parts = [name for name in dir(module) if name.endswith(("Projection", "Prompts"))]
        parts += [name for name in ("Encoder", "Decoder", "CoAttention") if hasattr(module, name)]
        for part in (getattr(module, name) for name in parts):
            if part.__module__ == module.__name__ and part not in torch_parts.FIELDS:
                missing.add(f"{path.stem}.{part.__name__}")
    assert not missing


def test_an_end_of_text_is_found_as_ours_is(make_trained, tmp_path) -> None:
    """No such token, one in the padding, two of them, an empty text."""
    encoder = clip_text.Encoder(**CLIP_TEXT, eos_token_id=7)
    trained = make_trained(text_encoder=encoder)
    model = torch_export.load_package(torch_export.export(trained, tmp_path / "out").folder)
    ids = np.full((4, 16), 5, np.int32)
    mask = np.ones_like(ids)
    mask[1, 8:], ids[1, 9] = 0, 7
    ids[2, [4, 9]] = 7
    mask[3] = 0
    batch = {**exporting.random_batch(trained, 4), "input_ids": ids, "attention_mask": mask}
    ours = exporting.outputs(trained, batch)["text_embed"]
    with torch.inference_mode():
        got = model.encode_text(torch.from_numpy(ids).long(), torch.from_numpy(mask).long())
    np.testing.assert_allclose(got.numpy(), ours, atol=1e-5)


def test_a_wrong_export_is_not_left_behind(make_trained, tmp_path, monkeypatch) -> None:
    trained = make_trained()
    torch_export.export(trained, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    tensors = torch_export.tensors

    def broken(trained: Any) -> dict[str, np.ndarray]:
        made = tensors(trained)
        return {**made, "text_projection.fc.weight": made["text_projection.fc.weight"] + 0.01}

    monkeypatch.setattr(torch_export, "tensors", broken)
    for folder in ("out", "new"):
        with pytest.raises(UserError, match="other embeddings in PyTorch"):
            torch_export.export(trained, tmp_path / folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_without_torch_it_says_not_verified(make_trained, tmp_path, monkeypatch) -> None:
    find = torch_export.importlib.util.find_spec
    monkeypatch.setattr(
        torch_export.importlib.util, "find_spec", lambda n: None if n == "torch" else find(n)
    )
    done = torch_export.export(make_trained("mgca"), tmp_path / "out")
    assert not done.verified
    assert "image_token_projection" in done.notes[0]
    assert "not verified" in done.notes[1]
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["format"] == torch_export.FORMAT
