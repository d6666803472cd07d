"""Without these, a tower exported by itself could load in transformers and give other states than ours."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, hf_format, hf_tower
from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import bert, clip_text, convnext, densenet, resnet, siglip_text, swin, vit

BERT = {**bert.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
VIT = vit.VARIANTS["test/8"]
CONVNEXT = {**convnext.VARIANTS["test"], "patch_size": 4}
CLIP = {
    **VIT,
    "pre_layernorm": True,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_bias": False,
}
SIGLIP = {**VIT, "class_token": False, "pooling": "map", "activation": "gelu_tanh"}
SIGLIP_TEXT = {**siglip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 20}
CLIP_TEXT = {**clip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}

IMAGE: dict[str, tuple[Any, str, bool]] = {
    "pooler": (vit.Encoder(**{**VIT, "pooling": "pooler"}), "ViTModel", True),
    "cls": (vit.Encoder(**VIT, positions="sincos", patch_bias=False), "ViTModel", True),
    "mean": (vit.Encoder(**{**VIT, "pooling": "mean"}), "ViTModel", False),
    "clip": (vit.Encoder(**CLIP), "CLIPVisionModel", True),
    "dinov2": (vit.Encoder(**VIT, layer_scale=1.0), "Dinov2Model", True),
    "registers": (
        vit.Encoder(**{**VIT, "pooling": "mean"}, layer_scale=1.0, registers=3),
        "Dinov2WithRegistersModel",
        False,
    ),
    "map": (vit.Encoder(**{**VIT, "pooling": "map"}), "ViTModel", False),
    "siglip": (vit.Encoder(**SIGLIP), "SiglipVisionModel", True),
    "siglip, fixed positions": (
        vit.Encoder(**SIGLIP, positions="sincos", patch_bias=False),
        "SiglipVisionModel",
        True,
    ),
    "swin": (
        swin.Encoder(width=16, depths=(2, 2), heads=(2, 4), window=4, patch_size=2),
        "SwinModel",
        True,
    ),
    "swin, padded windows": (
        swin.Encoder(width=8, depths=(2, 2), heads=(1, 2), window=3),
        "SwinModel",
        True,
    ),
    "tanh": (vit.Encoder(**{**VIT, "activation": "gelu_tanh"}), "ViTModel", True),
    "convnext": (convnext.Encoder(**CONVNEXT, batch_norm=True), "ConvNextModel", True),
    "resnet": (resnet.Encoder(**resnet.VARIANTS["test"]), "ResNetModel", True),
    "basic": (
        resnet.Encoder(depths=(1, 2, 1, 1), bottleneck=False, stem_width=8, token_layer="layer3"),
        "ResNetModel",
        True,
    ),
}
TEXT: dict[str, tuple[Any, str, bool]] = {
    "pooler": (bert.Encoder(**BERT), "BertModel", True),
    "max": (bert.Encoder(**BERT, pooling="max", token_types=0), "BertModel", False),
    "attention": (bert.Encoder(**BERT, pooling="attention"), "BertModel", False),
    "clip": (clip_text.Encoder(**CLIP_TEXT), "CLIPTextModel", True),
    "clip eos": (clip_text.Encoder(**CLIP_TEXT, eos_token_id=3), "CLIPTextModel", True),
    "roberta": (
        bert.Encoder(**BERT, position_ids="roberta", padding_idx=0, token_types=1),
        "RobertaModel",
        True,
    ),
}


@pytest.mark.parametrize("name", IMAGE)
def test_image_tower(name: str, make_trained, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoImageProcessor, AutoModel

    encoder, kind, pools_alike = IMAGE[name]
    trained = make_trained(image_encoder=encoder)
    done = hf_tower.export(trained, tmp_path / "out", "image")
    assert done.verified
    assert done.difference <= hf_tower.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    model = AutoModel.from_pretrained(done.folder).eval()
    assert type(model).__name__ == kind
    assert AutoImageProcessor.from_pretrained(done.folder).crop_size["height"] == 32
    batch = exporting.random_batch(trained, 3)
    ours = hf_tower.tower_outputs(trained, "image", batch)
    with torch.inference_mode():
        out = model(torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()))
    states, pooled = out.last_hidden_state.numpy(), out.pooler_output.numpy().reshape(3, -1)
    if kind == "Dinov2WithRegistersModel":
        states = np.concatenate([states[:, :1], states[:, 4:]], axis=1)
    if states.ndim == 4:
        states = states.transpose(0, 2, 3, 1).reshape(ours["states"].shape)
    scale = np.abs(states).max()
    np.testing.assert_allclose(ours["states"] / scale, states / scale, atol=1e-5)
    assert np.abs(states[0] - states[1]).max() > 1e-2 * scale  # the inputs do matter
    assert any("pooler_output is not ours" in note for note in done.notes) == (not pools_alike)
    if pools_alike:
        np.testing.assert_allclose(ours["pooled"], pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TEXT)
def test_text_tower(name: str, make_trained, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    encoder, kind, pools_alike = TEXT[name]
    trained = make_trained(text_encoder=encoder)
    done = hf_tower.export(trained, tmp_path / "out", "text")
    assert done.verified
    assert done.difference <= hf_tower.TOLERANCE
    model = AutoModel.from_pretrained(done.folder).eval()
    assert type(model).__name__ == kind
    rows = AutoTokenizer.from_pretrained(done.folder)(
        ["no effusion", "small left pleural effusion"], padding=True, return_tensors="pt"
    )
    batch = {k: v.numpy().astype(np.int32) for k, v in rows.items()}
    ours = hf_tower.tower_outputs(trained, "text", batch)
    with torch.inference_mode():
        out = model(**rows)
    real = batch["attention_mask"] > 0
    assert not real.all()
    np.testing.assert_allclose(
        ours["states"][real], out.last_hidden_state.numpy()[real], atol=1e-4, rtol=1e-4
    )
    assert any("pooler_output is not ours" in note for note in done.notes) == (not pools_alike)
    if pools_alike:
        np.testing.assert_allclose(ours["pooled"], out.pooler_output.numpy(), atol=1e-4)


@pytest.mark.parametrize("head", [None, 20])
def test_siglip_text_tower(head: int | None, make_trained, tmp_path) -> None:
    """Read at the length of training and without a mask."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, SiglipTextModel

    trained = make_trained(text_encoder=siglip_text.Encoder(**SIGLIP_TEXT, head_dim=head))
    done = hf_tower.export(trained, tmp_path / "out", "text")
    assert done.verified
    assert done.difference <= hf_tower.TOLERANCE
    model = SiglipTextModel.from_pretrained(done.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    texts = ["no effusion", "small left pleural effusion"]
    rows = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert set(rows) == {"input_ids"}
    ids = rows["input_ids"].numpy().astype(np.int32)
    assert ids.shape == (2, trained.max_length)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    ours = hf_tower.tower_outputs(trained, "text", batch)
    with torch.inference_mode():
        out = model(**rows)
    np.testing.assert_allclose(ours["states"], out.last_hidden_state.numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(ours["pooled"], out.pooler_output.numpy(), atol=1e-4, rtol=1e-4)
    assert not any("pooler_output" in note for note in done.notes)


def test_heads_and_fusion_do_not_matter(make_trained, tmp_path) -> None:
    for name in ("convirt", "mgca", "m3ae"):
        done = hf_tower.export(make_trained(name), tmp_path / name, "text")
        assert done.verified
        assert "projection to the shared space stays behind" in done.notes[0]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no class token": (
        dict(image_encoder=vit.Encoder(**{**VIT, "class_token": False, "pooling": "mean"})),
        "image",
        "class_token=False",
    ),
    "clip without biases": (
        dict(image_encoder=vit.Encoder(**CLIP, qkv_bias=False)),
        "image",
        "qkv_bias=False",
    ),
    "registers": (
        dict(image_encoder=vit.Encoder(**VIT, registers=2)),
        "image",
        "registers=2: only with layer_scale",
    ),
    "eos": (
        dict(text_encoder=clip_text.Encoder(**CLIP_TEXT, eos_token_id=2)),
        "text",
        "eos_token_id=2",
    ),
    "pad id": (
        dict(text_encoder=bert.Encoder(**BERT, position_ids="roberta")),
        "text",
        "padding_idx=1",
    ),
    "part": ({}, "both", "choose image or text"),
    "densenet": (dict(image_encoder=densenet.Encoder(depths=(1,))), "image", "name='densenet'"),
    "siglip with registers": (
        dict(image_encoder=vit.Encoder(**SIGLIP, registers=2)),
        "image",
        "registers=2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name: str, make_trained, tmp_path) -> None:
    fields, part, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        hf_tower.export(make_trained(**fields), tmp_path / "out", part)
    assert not list(tmp_path.iterdir())


def test_size_must_fit_the_patches(make_trained, tmp_path) -> None:
    image = ImageInput(size=36, channels=1, mean=(0.5,), std=(0.25,))
    trained = dataclasses.replace(make_trained(), image=image)
    with pytest.raises(UserError, match=r"multiple of 8\n.*channels=1"):
        hf_tower.export(trained, tmp_path / "out", "image")


def test_a_wrong_export_is_not_left_behind(make_trained, tmp_path, monkeypatch) -> None:
    tensors = hf_format.image_tensors

    def broken(*args) -> dict[str, np.ndarray]:
        made = tensors(*args)
        return {**made, "layernorm.bias": made["layernorm.bias"] + 0.01}

    monkeypatch.setattr(hf_format, "image_tensors", broken)
    with pytest.raises(UserError, match="other embeddings"):
        hf_tower.export(make_trained(), tmp_path / "out", "image")
    assert not list(tmp_path.iterdir())


def test_a_downloaded_model_is_not_replaced(make_trained, tmp_path) -> None:
    trained = make_trained()
    hf_tower.export(trained, tmp_path / "out", "image")
    hf_tower.export(dataclasses.replace(trained, card="second"), tmp_path / "out", "image")
    assert (tmp_path / "out" / "README.md").read_text() == "second"
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="no earlier export"):
        hf_tower.export(trained, tmp_path / "bert", "image")


@pytest.mark.parametrize(("part", "siglip"), [("image", 0), ("text", 0), ("text", 1)])
def test_the_code_of_the_card_runs(
    part: hf_tower.Part, siglip: int, make_trained, tmp_path, monkeypatch, capsys, usage_code
) -> None:
    pytest.importorskip("torch")
    from PIL import Image

    text = {"text_encoder": siglip_text.Encoder(**SIGLIP_TEXT)} if siglip else {}
    trained = make_trained(**text)
    done = hf_tower.export(trained, tmp_path / "out", part)
    monkeypatch.chdir(done.folder)
    Image.new("L", (50, 40)).save("image.png")
    exec(usage_code(hf_tower.usage(trained.model, part)), {})
    assert "torch.Size([1, " in capsys.readouterr().out
