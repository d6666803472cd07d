"""Without these, exported weights could load in PyTorch and give other embeddings than ours."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medvlp_jax.data import text
from medvlp_jax.data.transforms import centre_crop, resize_shorter
from medvlp_jax.errors import UserError
from medvlp_jax.interop import hf
from medvlp_jax.interop.model_card import model_card
from medvlp_jax.models import bert, clip_text, convnext, heads, resnet, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

LENGTH = 16
IMAGE = hf.ImageInput(size=32, channels=3, mean=(0.5,), std=(0.25,))
TEXTS = ["no pleural effusion", "small left pleural effusion with basal atelectasis and edema"]


@pytest.fixture(scope="module")
def tokenizer() -> text.Tokenizer:
    return text.train_wordpiece(TEXTS * 3, vocab_size=120)


def make_model(
    image: dict | None = None, words: dict | None = None, **parts
) -> VisionLanguageModel:
    sizes = {**bert.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
    fields = dict(
        image_encoder=vit.Encoder(
            **{**vit.VARIANTS["test/8"], "pooling": "pooler", **(image or {})}
        ),
        text_encoder=bert.Encoder(**{**sizes, **(words or {})}),
        image_projection=heads.LinearProjection(24),
        text_projection=heads.LinearProjection(24),
    )
    return VisionLanguageModel(**{**fields, **parts})


def make_params(model: VisionLanguageModel) -> dict:
    """Random everywhere: initial zeros and ones would hide a bias or scale that got lost."""
    batch = {
        "image": jnp.zeros((1, 32, 32, 3)),
        "input_ids": jnp.ones((1, LENGTH), jnp.int32),
        "attention_mask": jnp.ones((1, LENGTH), jnp.int32),
    }
    params = model.init(jax.random.key(0), batch)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def run(model, params, tokenizer, folder, **changes) -> hf.Exported:
    settings = dict(image=IMAGE, max_length=LENGTH, logit_scale=12.5, card="# card\n")
    return hf.export(model, params, tokenizer, folder, **{**settings, **changes})


def compare(model, params, tokenizer, folder) -> None:
    """Loads the folder as a user would and compares embeddings on padded texts and random pixels."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, VisionTextDualEncoderModel

    theirs = VisionTextDualEncoderModel.from_pretrained(folder).eval()
    rows = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    ours = text.encode(tokenizer, TEXTS, LENGTH)
    np.testing.assert_array_equal(rows["input_ids"].numpy(), ours["input_ids"])
    np.testing.assert_array_equal(rows["attention_mask"].numpy(), ours["attention_mask"])
    assert (ours["attention_mask"] == 0).any()
    pixels = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        out = theirs(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **rows)
    got = model.apply({"params": params}, {"image": pixels, **ours})
    for key in ("image_embed", "text_embed"):
        expected = out[f"{key}s"].numpy()
        np.testing.assert_allclose(got[key], expected, atol=1e-4)
        assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the inputs do matter
    logits = 12.5 * np.asarray(got["image_embed"]) @ np.asarray(got["text_embed"]).T
    np.testing.assert_allclose(out.logits_per_image.numpy(), logits, atol=2e-3)


VARIANTS = {
    "pooler": {},
    "cls": dict(image=dict(pooling="cls")),
    "sincos": dict(image=dict(positions="sincos", patch_bias=False, qkv_bias=False)),
    "quick_gelu": dict(image=dict(activation="quick_gelu"), words=dict(layer_norm_eps=1e-5)),
    "dinov2": dict(image=dict(pooling="cls", layer_scale=1.0, registers=2)),
    "no_types_no_heads": dict(
        words=dict(token_types=0), image_projection=None, text_projection=None
    ),
    "bfloat16": dict(image=dict(dtype=jnp.bfloat16), words=dict(dtype=jnp.bfloat16)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pytorch_gives_the_same_embeddings(name: str, tokenizer, tmp_path) -> None:
    model = make_model(**VARIANTS[name])
    params = make_params(model)
    done = run(model, params, tokenizer, tmp_path / "out")
    assert done.verified
    assert done.difference <= hf.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    if name != "bfloat16":
        compare(model, params, tokenizer, tmp_path / "out")


def test_roberta(tokenizer, tmp_path) -> None:
    model = make_model(words=dict(position_ids="roberta", padding_idx=0, token_types=1))
    params = make_params(model)
    assert run(model, params, tokenizer, tmp_path / "out").difference <= hf.TOLERANCE
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["model_type"] == "roberta"
    compare(model, params, tokenizer, tmp_path / "out")
    with pytest.raises(UserError, match="padding_idx"):
        run(make_model(words=dict(position_ids="roberta")), params, tokenizer, tmp_path / "no")


CLIP = {
    **vit.VARIANTS["test/8"],
    "pre_layernorm": True,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_bias": False,
}
CLIP_TEXT = {**clip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}


@pytest.mark.parametrize("end", [None, 3])
def test_the_towers_of_clip_become_a_clip_model(end: int | None, tokenizer, tmp_path) -> None:
    """At the highest id, or at the id of [SEP], the only one that every text of `compare` has."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, CLIPModel

    model = make_model(
        image_encoder=vit.Encoder(**CLIP),
        text_encoder=clip_text.Encoder(**CLIP_TEXT, eos_token_id=end),
    )
    params = make_params(model)
    done = run(model, params, tokenizer, tmp_path / "out")
    assert done.verified
    theirs = CLIPModel.from_pretrained(done.folder).eval()
    rows = AutoTokenizer.from_pretrained(done.folder)(TEXTS, padding=True, return_tensors="pt")
    pixels = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        out = theirs(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **rows)
    batch = {"image": pixels, **{k: v.numpy().astype(np.int32) for k, v in rows.items()}}
    got: Any = model.apply({"params": params}, batch)
    np.testing.assert_allclose(got["image_embed"], out.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(got["text_embed"], out.text_embeds.numpy(), atol=1e-4)
    assert theirs.logit_scale.exp().item() == pytest.approx(12.5, rel=1e-5)
    run(model, params, tokenizer, tmp_path / "out", card="second")
    assert (tmp_path / "out" / "README.md").read_text() == "second"


def test_a_downloaded_clip_is_not_replaced(tokenizer, tmp_path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    model = make_model()
    with pytest.raises(UserError, match="no earlier export"):
        run(model, make_params(model), tokenizer, tmp_path / "clip")


@pytest.mark.parametrize("head", [True, False])
def test_convnext(head: bool, tokenizer, tmp_path) -> None:
    encoder = convnext.Encoder(**{**convnext.VARIANTS["test"], "patch_size": 4})
    width = encoder.hidden_sizes[-1]
    if head:
        model = make_model(image_encoder=encoder)
    else:
        projection = heads.LinearProjection(width)
        model = make_model(image_encoder=encoder, image_projection=None, text_projection=projection)
    params = make_params(model)
    done = run(model, params, tokenizer, tmp_path / "out")
    assert done.verified
    assert done.difference <= hf.TOLERANCE
    compare(model, params, tokenizer, tmp_path / "out")
    wrong = hf.ImageInput(size=36, channels=3, mean=(0.5,), std=(0.25,))
    with pytest.raises(UserError, match="multiple of 8"):
        run(model, params, tokenizer, tmp_path / "no", image=wrong)


def test_batch_norm_is_folded_into_the_weights(tokenizer, tmp_path) -> None:
    encoder = convnext.Encoder(**{**convnext.VARIANTS["test"], "patch_size": 4}, batch_norm=True)
    model = make_model(image_encoder=encoder)
    params = make_params(model)
    plain = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(3)
    stats = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), plain["batch_stats"]
    )
    trained = {"params": params["image_encoder"], "batch_stats": stats}
    pixels = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected: Any = encoder.apply(trained, pixels)
    folded = {"params": convnext.fold(params["image_encoder"], stats)}
    got: Any = encoder.clone(batch_norm=False).apply(folded, pixels)
    np.testing.assert_allclose(got["pooled"], expected["pooled"], atol=1e-4, rtol=1e-4)
    statistics = {"image_encoder": stats}
    done = run(model, params, tokenizer, tmp_path / "out", batch_stats=statistics)
    assert done.verified
    assert done.difference <= hf.TOLERANCE


def test_every_file_loads_without_the_internet(tokenizer, tmp_path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = make_model()
    done = run(model, make_params(model), tokenizer, tmp_path / "out", card="**hello**")
    names = {p.name for p in done.folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (done.folder / "README.md").read_text() == "**hello**"
    loaded = AutoTokenizer.from_pretrained(done.folder)
    assert loaded.model_max_length == LENGTH
    assert loaded.mask_token == "[MASK]"
    assert type(AutoModel.from_pretrained(done.folder)).__name__ == "VisionTextDualEncoderModel"
    # A picture that is not square: our evaluation and their processor must look at the same part.
    y, x = np.mgrid[:60, :90]
    grey = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    processor = AutoImageProcessor.from_pretrained(done.folder)
    theirs = processor(Image.fromarray(grey), return_tensors="np")["pixel_values"][0]
    ours = centre_crop(resize_shorter(np.repeat(grey[..., None], 3, -1), 32), 32)
    normalised = (ours.transpose(2, 0, 1) / 255 - 0.5) / 0.25
    assert theirs.shape == (3, 32, 32)
    assert np.abs(theirs - normalised).mean() < 0.06  # 4 grey levels of 255


def test_logit_scale_is_stored_as_its_logarithm(tokenizer, tmp_path) -> None:
    from safetensors.numpy import load_file

    model = make_model()
    done = run(model, make_params(model), tokenizer, tmp_path / "out")
    stored = load_file(done.folder / "model.safetensors")["logit_scale"]
    assert stored.shape == ()
    assert np.exp(stored) == pytest.approx(12.5, rel=1e-6)


REFUSED = {
    "vit pooling": (dict(image=dict(pooling="mean")), r"image_encoder\.pooling='mean'"),
    "clip": (dict(image=dict(pre_layernorm=True)), "pre_layernorm"),
    "bert pooling": (dict(words=dict(pooling="max")), r"text_encoder\.pooling='max'"),
    "text pooling": (dict(text_pooling="mean"), "text_pooling"),
    "mlp head": (dict(image_projection=heads.MLPProjection(24)), r"heads\.LinearProjection"),
    "bias": (dict(text_projection=heads.LinearProjection(24, use_bias=True)), "use_bias"),
    "widths": (dict(text_projection=heads.LinearProjection(20)), "24 and 20"),
    "fusion": (dict(fusion=heads.ItmHead()), "fusion"),
    "clip text with a plain vit": (
        dict(text_encoder=clip_text.Encoder(**CLIP_TEXT)),
        "pre_layernorm=False: 'clip_text' goes with",
    ),
    "registers": (dict(image=dict(registers=2)), "registers=2"),
    "resnet": (
        dict(image_encoder=resnet.Encoder(**next(iter(resnet.VARIANTS.values())))),
        "only 'vit' and 'convnext'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name: str, tokenizer, tmp_path) -> None:
    changes, pattern = REFUSED[name]
    with pytest.raises(UserError, match=pattern):
        run(make_model(**changes), {}, tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_all_reasons_at_once(tokenizer) -> None:
    model = make_model(image=dict(pooling="mean"), text_projection=heads.MLPProjection(24))
    with pytest.raises(UserError) as error:
        hf.check(model, IMAGE, tokenizer)
    assert len(str(error.value).splitlines()) == 3


def test_a_wrong_export_is_not_left_behind(tokenizer, tmp_path, monkeypatch) -> None:
    model = make_model()
    params = make_params(model)
    weights = hf.weights

    def broken(*args) -> dict:
        tensors = weights(*args)
        tensors["text_projection.weight"] = tensors["text_projection.weight"] + 0.01
        return tensors

    run(model, params, tokenizer, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setattr(hf, "weights", broken)
    with pytest.raises(UserError, match="other embeddings"):
        run(model, params, tokenizer, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    monkeypatch.setattr(
        hf,
        "weights",
        lambda *a: {
            k: v for k, v in weights(*a).items() if "fc" not in k and "intermediate" not in k
        },
    )
    with pytest.raises(UserError, match="cannot load"):
        run(model, params, tokenizer, tmp_path / "out")


def test_only_an_earlier_export_is_replaced(tokenizer, tmp_path) -> None:
    model = make_model()
    params = make_params(model)
    run(model, params, tokenizer, tmp_path / "out")
    run(model, params, tokenizer, tmp_path / "out", card="second")
    assert (tmp_path / "out" / "README.md").read_text() == "second"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no earlier export"):
        run(model, params, tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()


def test_without_torch_it_says_not_verified(tokenizer, tmp_path, monkeypatch) -> None:
    find = hf.importlib.util.find_spec
    monkeypatch.setattr(hf.importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise
    model = make_model(image_token_projection=heads.LinearProjection(8))
    params = make_params(model)
    done = run(model, params, tokenizer, tmp_path / "out")
    assert not done.verified
    assert "image_token_projection" in done.notes[0]
    assert "not verified" in done.notes[1]


def test_model_card(tmp_path) -> None:
    card = model_card(
        title="tiny",
        config={"seed": 3},
        dataset={"name": "synthetic_cxr", "licence": "CC0", "empty": ""},
        metrics={
            "zero_shot/x/macro_auroc": {"value": 0.875, "low": 0.8, "high": 0.9, "n": 100},
            "zero_shot/x/auroc_nodule": {"value": None, "low": None, "high": None, "n": 9},
        },
        evaluated_on="synthetic_cxr, split test",
        usage=hf.USAGE,
        notes=("Synthetic images only.",),
    )
    assert "**Not for clinical use.**" in card
    assert "| zero_shot/x/macro_auroc | 0.875 | 0.800 to 0.900 | 100 |" in card
    assert "nodule" not in card
    assert '"seed": 3' in card
    assert "- licence: CC0" in card
    assert "Synthetic images only." in card
    assert "from_pretrained" in card
    assert card.startswith("---\nlibrary_name: transformers")
    assert "Not evaluated." in model_card(
        title="x", config={}, dataset={}, metrics={}, evaluated_on=""
    )
