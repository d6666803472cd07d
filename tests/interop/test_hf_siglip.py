"""Without these, SigLIP's two towers could load as a SiglipModel and give other logits than ours."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from medvlp_jax.data import text
from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, formats, hf
from medvlp_jax.models import convnext, heads, siglip_text, vit
from medvlp_jax.predictor import trained_logit_bias

TEXTS = ["no pleural effusion", "small left pleural effusion with basal atelectasis and edema"]
VIT: dict[str, Any] = {
    **vit.VARIANTS["test/8"],
    "class_token": False,
    "pooling": "map",
    "activation": "gelu_tanh",
}
TEXT: dict[str, Any] = {**siglip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 20}


@pytest.fixture
def make_siglip(make_trained):
    def make(image=None, words=None, bias: float | None = -7.5, **fields) -> exporting.Trained:
        parts: dict[str, Any] = dict(
            image_encoder=vit.Encoder(**{**VIT, **(image or {})}),
            text_encoder=siglip_text.Encoder(**{**TEXT, **(words or {})}),
            image_projection=None,
            text_projection=None,
        )
        return dataclasses.replace(make_trained(**{**parts, **fields}), logit_bias=bias)

    return make


def export(trained, folder):
    return formats.export(trained, folder, to="hf", part="both")


VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "sincos": dict(image=dict(positions="sincos", patch_bias=False), bias=None),
    "head": dict(words=dict(width=48, heads=4, head_dim=32, activation="gelu")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_the_siglip_model_are_ours(name, make_siglip, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    trained = make_siglip(**VARIANTS[name])
    done = export(trained, tmp_path / "out")
    assert done.verified
    assert done.difference <= hf.TOLERANCE
    theirs = AutoModel.from_pretrained(done.folder).eval()
    assert type(theirs).__name__ == "SiglipModel"
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    rows = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert set(rows) == {"input_ids"}  # a mask would hide the padding that the tower looks at
    ours = text.encode(trained.tokenizer, TEXTS, trained.max_length)
    np.testing.assert_array_equal(rows["input_ids"].numpy(), ours["input_ids"])
    assert (ours["attention_mask"] == 0).any()
    pixels = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        out = theirs(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **rows)
    got = exporting.outputs(trained, {"image": pixels, **ours})
    np.testing.assert_allclose(got["image_embed"], out.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(got["text_embed"], out.text_embeds.numpy(), atol=1e-4)
    bias = trained.logit_bias or 0.0
    logits = 12.5 * got["image_embed"] @ got["text_embed"].T + bias
    np.testing.assert_allclose(out.logits_per_image.numpy(), logits, atol=2e-3)
    assert np.ptp(logits) > 0.02  # the inputs do matter


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class token": (dict(image=dict(class_token=True)), "class_token=True: 'siglip_text' goes"),
    "pooling": (dict(image=dict(pooling="mean")), "pooling='mean': use 'map'"),
    "other tower": (
        dict(image_encoder=convnext.Encoder(**convnext.VARIANTS["test"])),
        "name='convnext': only 'vit' of a siglip",
    ),
    "layer scale": (dict(image=dict(layer_scale=1.0)), "layer_scale=1.0"),
    "projection": (
        dict(text_projection=heads.LinearProjection(32)),
        "text_projection: SiglipModel",
    ),
    "widths": (dict(words=dict(head_dim=20)), "have 32 and 20 features: set"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name, make_siglip, tmp_path) -> None:
    changes, message = REFUSED[name]
    trained = make_siglip(**changes)
    with pytest.raises(UserError, match=f"SiglipModel(.|\n)*{message}"):
        export(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_is_not_left_behind(make_siglip, tmp_path, monkeypatch) -> None:
    pytest.importorskip("torch")
    weights = hf.weights

    def broken(*args) -> dict:
        tensors = weights(*args)
        return {**tensors, "text_model.head.bias": tensors["text_model.head.bias"] + 0.1}

    monkeypatch.setattr(hf, "weights", broken)
    with pytest.raises(UserError, match="other embeddings"):
        export(make_siglip(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_our_own_folder_is_replaced(make_siglip, tmp_path) -> None:
    export(make_siglip(), tmp_path / "out")
    export(dataclasses.replace(make_siglip(), card="second"), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "second"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError, match="no earlier export"):
        export(make_siglip(), tmp_path / "theirs")


def test_the_bias_is_that_of_the_trained_loss() -> None:
    siglip = {"log_logit_scale": np.float32(2.0), "logit_bias": np.float32(-9.5)}
    assert trained_logit_bias({"params": {"objectives_siglip": siglip}}) == -9.5
    assert trained_logit_bias({"params": {}}) is None
    both = {"objectives_siglip": siglip, "objectives_info_nce": {"log_logit_scale": 2.0}}
    assert trained_logit_bias({"params": both}) is None
