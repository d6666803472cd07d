"""Without these an exported captioner could write other reports in transformers than here."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, formats, hf_captioner
from medvlp_jax.models import causal_decoder, clip_text, heads, resnet, vit

torch = pytest.importorskip("torch")

VIT = vit.VARIANTS["test/8"]
DECODER = {**causal_decoder.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
NARROW = {**DECODER, "width": 24, "mlp_dim": 48}


def parts(**fields: Any) -> dict[str, Any]:
    """A captioner: no text encoder, no heads of a shared space."""
    return {
        "text_encoder": None,
        "image_projection": None,
        "text_projection": None,
        "text_decoder": causal_decoder.Decoder(**DECODER),
        **fields,
    }


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": dict(text_decoder=causal_decoder.Decoder(**DECODER, tied=False, activation="gelu")),
    "projected": dict(
        image_encoder=vit.Encoder(**VIT, positions="sincos", patch_bias=False, pooling="mean"),
        text_decoder=causal_decoder.Decoder(**NARROW),
        context_projection=heads.LinearProjection(24),
    ),
    "biased": dict(
        text_decoder=causal_decoder.Decoder(**NARROW),
        context_projection=heads.LinearProjection(24, use_bias=True),
    ),
    "dinov2": dict(image_encoder=vit.Encoder(**VIT, layer_scale=0.5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(**parts(**MODELS[name]))
    exported = formats.export(trained, tmp_path / "out", to="hf", part="both")
    assert exported.verified
    assert exported.difference < hf_captioner.TOLERANCE
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["decoder_start_token_id"] == trained.tokenizer.cls_token_id
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert ("decoder.lm_head.weight" in tensors) == (name == "untied")
    assert ("enc_to_dec_proj.bias" in tensors) == (name in ("projected", "biased"))


def test_greedy_decoding_agrees_token_by_token(make_trained, tmp_path) -> None:
    """transformers' generation with its cache against our full forward pass."""
    from transformers import VisionEncoderDecoderModel

    trained = make_trained(**parts())
    hf_captioner.export(trained, tmp_path / "out")
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path / "out").eval()
    batch = exporting.random_batch(trained, 2)
    pixels = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        theirs = model.generate(pixels, max_length=9, min_length=9, do_sample=False).numpy()
    assert theirs.shape == (2, 9)
    ids = np.full((2, 1), trained.tokenizer.cls_token_id, np.int32)
    for _ in range(8):
        given = {"image": batch["image"], "input_ids": ids, "attention_mask": np.ones_like(ids)}
        scores = exporting.outputs(trained, given)["decoder_logits"][:, -1].copy()
        scores[:, trained.tokenizer.sep_token_id] = -np.inf  # min_length
        ids = np.concatenate([ids, scores.argmax(axis=-1)[:, None].astype(np.int32)], axis=1)
    assert np.array_equal(ids, theirs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(image_encoder=resnet.Encoder(**resnet.VARIANTS["test"])), "only 'vit' gives"),
        (dict(image_encoder=vit.Encoder(**VIT, pre_layernorm=True)), r"pre_layernorm=True"),
        (
            dict(image_encoder=vit.Encoder(**VIT, layer_scale=0.5, registers=2)),
            r"registers=2: their decoder would see them",
        ),
        (dict(text_decoder=causal_decoder.Decoder(**NARROW)), r"features=24\)"),
        (dict(context_projection=heads.LinearProjection(32)), "both sides are 32 wide; use None"),
    ],
)
def test_what_does_not_fit_is_named(fields, message, make_trained, tmp_path) -> None:
    trained = make_trained(**parts(**fields))
    with pytest.raises(UserError, match=message):
        hf_captioner.export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_weight_is_noticed(make_trained, tmp_path, monkeypatch) -> None:
    trained = make_trained(**parts())
    honest = hf_captioner.weights

    def bent(*args):
        tensors = honest(*args)
        key = "decoder.transformer.h.1.crossattention.c_attn.weight"
        return {**tensors, key: tensors[key] * 1.01}

    monkeypatch.setattr(hf_captioner, "weights", bent)
    with pytest.raises(UserError, match="other embeddings in PyTorch"):
        hf_captioner.export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dual_encoder_is_no_captioner(make_trained) -> None:
    assert not hf_captioner.fits(make_trained().model)
    both = make_trained(
        **{**parts(), "text_encoder": clip_text.Encoder(**clip_text.VARIANTS["test"])}
    )
    assert not hf_captioner.fits(both.model)


def test_the_usage_runs(make_trained, tmp_path, usage_code, monkeypatch, capsys) -> None:
    from PIL import Image

    trained = dataclasses.replace(make_trained(**parts()))
    hf_captioner.export(trained, tmp_path / "out")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "out" / "image.png")
    monkeypatch.chdir(tmp_path / "out")
    exec(usage_code(hf_captioner.USAGE), {})
    options = formats.card_options("hf", "both", trained.model)
    assert capsys.readouterr().out.strip()
    assert options["usage"] == hf_captioner.USAGE
