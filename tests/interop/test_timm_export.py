"""Without these, an image tower could be written with a name, size or order that timm reads as another tower.

timm is no dependency: what its constructors and files say is written here by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import formats, hf_tower, pretrained, timm_export, timm_names
from medvlp_jax.interop.exporting import ImageInput
from medvlp_jax.models import clip_resnet, convnext, densenet, resnet, swin, vit

VIT = vit.VARIANTS["test/8"]
SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
CLIP: dict[str, Any] = dict(
    pre_layernorm=True, activation="quick_gelu", layer_norm_eps=1e-5, patch_bias=False
)
SIGLIP: dict[str, Any] = {**VIT, "class_token": False, "pooling": "map", "activation": "gelu_tanh"}
CONVNEXT: dict[str, Any] = dict(hidden_sizes=(8, 8, 12, 16), depths=(1, 2, 1, 1))
SWIN = swin.VARIANTS["test"]

TOWERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "plain": (vit.Encoder(**VIT), "vit_base_patch8_224", {}),
    "no qkv bias": (
        vit.Encoder(**VIT, positions="sincos", patch_bias=False, qkv_bias=False),
        "vit_base_patch8_224",
        {"qkv_bias": False},
    ),
    "mean": (
        vit.Encoder(**{**VIT, "pooling": "mean", "class_token": False, "mlp_dim": 100}),
        "vit_base_patch8_224",
        {"global_pool": "avg", "fc_norm": False, "class_token": False, "mlp_ratio": 3.125},
    ),
    "clip": (vit.Encoder(**VIT, **CLIP), "vit_base_patch16_clip_quickgelu_224", {}),
    "dinov2": (vit.Encoder(**VIT, layer_scale=1.0), "vit_base_patch14_dinov2", {}),
    "registers": (
        vit.Encoder(**VIT, layer_scale=1.0, registers=3),
        "vit_base_patch14_reg4_dinov2",
        {"reg_tokens": 3},
    ),
    "registers alone": (
        vit.Encoder(**{**VIT, "pooling": "mean"}, registers=2),
        "vit_base_patch8_224",
        {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg", "fc_norm": False},
    ),
    "siglip": (
        vit.Encoder(**SIGLIP),
        "vit_base_patch16_siglip_224",
        {"act_layer": "gelu_tanh"},
    ),
    "swin": (
        swin.Encoder(**SWIN),
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "embed_dim": 16,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": 4,
        },
    ),
    "convnext": (
        convnext.Encoder(**CONVNEXT, batch_norm=True, layer_scale=1.0),
        "convnext_tiny",
        {"depths": (1, 2, 1, 1), "dims": (8, 8, 12, 16)},
    ),
    "convnext without layer scale": (
        convnext.Encoder(**CONVNEXT, layer_scale=0.0),
        "convnext_tiny",
        {"depths": (1, 2, 1, 1), "dims": (8, 8, 12, 16)},
    ),
    "resnet": (
        resnet.Encoder(depths=(1, 1, 1, 1), bottleneck=False),
        "resnet18",
        {"layers": (1, 1, 1, 1)},
    ),
    "bottleneck": (
        resnet.Encoder(depths=(1, 1, 1, 1), bottleneck=True, token_layer="layer3"),
        "resnet50",
        {"layers": (1, 1, 1, 1)},
    ),
    "densenet": (
        densenet.Encoder(depths=(2, 1, 2), growth=6, stem_width=12),
        "densenet121",
        {"block_config": (2, 1, 2), "growth_rate": 6},
    ),
}
"""Name -> encoder, architecture, arguments without `SIZES`."""

IN_TRANSFORMERS = {
    *("plain", "no qkv bias", "clip", "dinov2", "registers", "convnext"),
    *("convnext without layer scale", "resnet", "bottleneck", "siglip", "swin"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_what_is_read_back_is_the_trained_tower(name: str, make_trained, tmp_path) -> None:
    encoder, architecture, arguments = TOWERS[name]
    trained = make_trained(image_encoder=encoder)
    done = timm_export.export(trained, tmp_path / "out")
    assert done.verified
    assert done.difference <= timm_export.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    files = {p.name for p in done.folder.iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((done.folder / "config.json").read_text())
    assert config["architecture"] == architecture
    sizes = SIZES if isinstance(encoder, vit.Encoder) else {}
    if architecture == "vit_base_patch8_224":
        sizes = {k: v for k, v in sizes.items() if k != "patch_size"}
    assert config["model_args"] == json.loads(json.dumps({**sizes, **arguments}))
    # The outputs of a fresh reading, not those the export itself looked at.
    form = timm_export.as_timm(trained.exact())
    own = {"params": form.params["image_encoder"]}
    if "image_encoder" in form.batch_stats:
        own["batch_stats"] = form.batch_stats["image_encoder"]
    loaded = pretrained.load(form.model.image_encoder, own, str(done.folder))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, own)
    image = np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)
    got: Any = form.model.image_encoder.apply(loaded.variables, image)
    exact = trained.exact()
    before = {"params": exact.params["image_encoder"]}
    if "image_encoder" in exact.batch_stats:
        before["batch_stats"] = exact.batch_stats["image_encoder"]
    expected: Any = exact.model.image_encoder.apply(before, image)
    for key in ("pooled", "tokens"):
        scale = max(1.0, np.abs(expected[key]).max())
        np.testing.assert_allclose(got[key] / scale, expected[key] / scale, atol=1e-4)
    assert np.abs(expected["pooled"][0] - expected["pooled"][1]).max() > 1e-3  # inputs do matter


@pytest.mark.parametrize("name", sorted(IN_TRANSFORMERS))
def test_transformers_gives_the_same_outputs(name: str, make_trained, tmp_path) -> None:
    """The folder of `--to hf --part image` against the weights read back from the folder of timm."""
    pytest.importorskip("torch")
    trained = make_trained(image_encoder=TOWERS[name][0])
    done = timm_export.export(trained, tmp_path / "timm")
    assert not any("PyTorch" in note for note in done.notes)
    form = timm_export.as_timm(trained.exact())
    again = timm_export.read_back(done.folder, form)
    theirs = hf_tower.export(trained, tmp_path / "hf", "image").folder
    assert hf_tower.verify(theirs, again, "image") <= 1e-4
    changed = jax.tree.map(lambda x: x * 1.01, again.params["image_encoder"])
    wrong = dataclasses.replace(again, params={**again.params, "image_encoder": changed})
    assert hf_tower.verify(theirs, wrong, "image") > 1e-4


PUBLISHED: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "vit_base_patch16_224": (vit.Encoder(**vit.VARIANTS["B/16"]), 224, {}),
    "vit_tiny_patch16_224": (vit.Encoder(**vit.VARIANTS["Ti/16"]), 224, {}),
    "vit_small_patch32_224": (vit.Encoder(**vit.VARIANTS["S/32"]), 224, {}),
    "vit_large_patch14_224": (vit.Encoder(**vit.VARIANTS["L/14"]), 224, {}),
    "vit_huge_patch14_224": (vit.Encoder(**vit.VARIANTS["H/14"]), 224, {}),
    "vit_base_patch16_clip_quickgelu_224": (vit.Encoder(**vit.VARIANTS["clip-B/16"]), 224, {}),
    "vit_large_patch14_clip_quickgelu_224": (vit.Encoder(**vit.VARIANTS["clip-L/14"]), 224, {}),
    "vit_small_patch14_dinov2": (vit.Encoder(**vit.VARIANTS["dinov2-S/14"]), 518, {}),
    "vit_large_patch14_reg4_dinov2": (vit.Encoder(**vit.VARIANTS["dinov2-L/14-reg"]), 518, {}),
    "vit_base_patch16_siglip_224": (
        vit.Encoder(**vit.VARIANTS["siglip-B/16"]),
        224,
        {"act_layer": "gelu_tanh"},
    ),
    "vit_so400m_patch14_siglip_224": (
        vit.Encoder(**vit.VARIANTS["siglip-So400m/14"]),
        378,
        {"act_layer": "gelu_tanh", "img_size": 378},
    ),
    "swin_base_patch4_window7_224": (swin.Encoder(**swin.VARIANTS["B"]), 224, {}),
    "convnext_small": (convnext.Encoder(**convnext.VARIANTS["S"]), 256, {}),
    "resnet34": (resnet.Encoder(**resnet.VARIANTS["34"]), 224, {}),
    "resnet152": (resnet.Encoder(**resnet.VARIANTS["152"]), 224, {}),
    "densenet121": (densenet.Encoder(**densenet.VARIANTS["121"]), 224, {}),
    "densenet169": (densenet.Encoder(**densenet.VARIANTS["169"]), 224, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_timm_get_its_names(name: str) -> None:
    encoder, size, arguments = PUBLISHED[name]
    image = ImageInput(size=size, channels=3, mean=(0.5,), std=(0.25,))
    assert timm_names.architecture(encoder, image) == (name, arguments)


def test_a_tanh_layer_stays_behind_and_the_export_says_so(make_trained, tmp_path) -> None:
    pooler = make_trained(image_encoder=vit.Encoder(**{**VIT, "pooling": "pooler"}))
    done = timm_export.export(pooler, tmp_path / "out")
    assert any("stays behind: timm pools by the class token" in note for note in done.notes)
    own = {k: v for k, v in pooler.params["image_encoder"].items() if k != "pooler"}
    encoder = vit.Encoder(**VIT)
    loaded = pretrained.load(encoder, {"params": own}, str(done.folder))
    image = np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)
    got: Any = encoder.apply(loaded.variables, image)
    params = {"params": pooler.params["image_encoder"]}
    expected: Any = pooler.model.image_encoder.apply(params, image)
    np.testing.assert_allclose(got["pooled"], expected["cls"], atol=1e-4)


def test_config_says_how_images_reach_the_tower(make_trained, tmp_path) -> None:
    done = timm_export.export(make_trained(image_encoder=vit.Encoder(**VIT)), tmp_path / "out")
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["num_classes"], config["num_features"]) == (0, 32)
    assert config["pretrained_cfg"] == {
        "input_size": [3, 32, 32],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def test_registers_have_no_part_in_the_position_table(make_trained, tmp_path) -> None:
    """As `vit_*_reg4_dinov2` of timm: `reg_token`, positions of patches, the class token's added to it."""
    trained = make_trained(image_encoder=vit.Encoder(**VIT, layer_scale=1.0, registers=3))
    done = timm_export.export(trained, tmp_path / "out")
    tensors = load_file(done.folder / "model.safetensors")
    ours = trained.params["image_encoder"]
    assert "register_tokens" not in tensors
    np.testing.assert_array_equal(tensors["reg_token"], ours["register_tokens"])
    np.testing.assert_array_equal(tensors["pos_embed"], ours["position_embed"][:, 1:])
    cls = ours["cls_token"] + ours["position_embed"][:, :1]
    np.testing.assert_array_equal(tensors["cls_token"], cls)


def test_swin_halves_the_grid_where_timm_expects_it_without_a_classifier(
    make_trained, tmp_path
) -> None:
    """timm takes such a file for one of the released code and counts `downsample` one later itself."""
    done = timm_export.export(make_trained(image_encoder=swin.Encoder(**SWIN)), tmp_path / "out")
    tensors = load_file(done.folder / "model.safetensors")
    assert [k for k in tensors if k.endswith("reduction.weight")] == [
        "layers.0.downsample.reduction.weight"
    ]


def test_resnet_has_all_of_timms_tensors(make_trained, tmp_path) -> None:
    encoder = resnet.Encoder(depths=(1, 1, 1, 1), bottleneck=False)
    done = timm_export.export(make_trained(image_encoder=encoder), tmp_path / "out")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", *(f"bn1.{leaf}" for leaf in norm)}
    for stage in (1, 2, 3, 4):
        block = f"layer{stage}.0"
        expected |= {f"{block}.conv{k}.weight" for k in (1, 2)}
        expected |= {f"{block}.bn{k}.{leaf}" for k in (1, 2) for leaf in norm}
        if stage > 1:
            expected |= {f"{block}.downsample.0.weight"}
            expected |= {f"{block}.downsample.1.{leaf}" for leaf in norm}
    assert set(load_file(done.folder / "model.safetensors")) == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "map with a class token": (vit.Encoder(**{**VIT, "pooling": "map"}), "pooling='map': only"),
    "eps": (vit.Encoder(**VIT, layer_norm_eps=1e-3), "layer_norm_eps=0.001"),
    "patch bias": (vit.Encoder(**VIT, pre_layernorm=True), "patch_bias=True"),
    "window": (swin.Encoder(**{**SWIN, "window": 3}), "multiple of it"),
    "stages": (convnext.Encoder(**convnext.VARIANTS["test"]), "4 stages"),
    "stem": (convnext.Encoder(**CONVNEXT, patch_size=2), "patch_size=2"),
    "last norm": (convnext.Encoder(**CONVNEXT, layer_norm_eps=1e-5), "layer_norm_eps=1e-05"),
    "resnet width": (resnet.Encoder(**resnet.VARIANTS["test"]), "stem_width=8"),
    "densenet width": (densenet.Encoder(depths=(1,), growth=8, stem_width=8), "stem_width=8"),
    "kind": (clip_resnet.Encoder(**next(iter(clip_resnet.VARIANTS.values()))), "'clip_resnet'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tower_that_timm_lacks_is_named(name: str, make_trained, tmp_path) -> None:
    encoder, message = REFUSED[name]
    trained = make_trained()
    trained = dataclasses.replace(trained, model=trained.model.clone(image_encoder=encoder))
    with pytest.raises(UserError, match=message):
        timm_export.export(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_is_not_left_behind(make_trained, tmp_path, monkeypatch) -> None:
    tensors = timm_export.tensors

    def broken(*args) -> dict[str, np.ndarray]:
        made = tensors(*args)
        return {**made, "norm.bias": made["norm.bias"] + 0.01}

    monkeypatch.setattr(timm_export, "tensors", broken)
    with pytest.raises(UserError, match="reads back differently in params/norm/bias"):
        timm_export.export(make_trained(image_encoder=vit.Encoder(**VIT)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_constants_of_timm_that_change_the_outputs_are_noticed(make_trained, tmp_path) -> None:
    """ConvNeXt's last norm: without variance in its input the epsilon is what counts."""
    trained = make_trained(image_encoder=convnext.Encoder(**CONVNEXT))
    tiny = jax.tree.map(lambda x: jnp.asarray(x) * 1e-4, trained.params["image_encoder"])
    tiny["norm"] = trained.params["image_encoder"]["norm"]
    trained = dataclasses.replace(trained, params={**trained.params, "image_encoder": tiny})
    with pytest.raises(UserError, match="other embeddings in the form of timm"):
        timm_export.export(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_export_to_timm_is_replaced(make_trained, tmp_path) -> None:
    trained = make_trained(image_encoder=vit.Encoder(**VIT))
    timm_export.export(trained, tmp_path / "out")
    timm_export.export(dataclasses.replace(trained, card="second"), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "second"
    hf_tower.export(trained, tmp_path / "hf", "image")
    with pytest.raises(UserError, match="no earlier export"):
        timm_export.export(trained, tmp_path / "hf")
    with pytest.raises(UserError, match="no earlier export"):
        hf_tower.export(trained, tmp_path / "out", "image")


def test_the_format_is_chosen_by_name(make_trained, tmp_path, usage_code) -> None:
    trained = make_trained(image_encoder=vit.Encoder(**VIT))
    formats.export(trained, tmp_path / "out", to="timm", part="both")
    assert "architecture" in (tmp_path / "out" / "config.json").read_text()
    with pytest.raises(UserError, match="image towers only"):
        formats.check("timm", "text")
    options = formats.card_options("timm", "both", trained.model)
    assert (options["library"], options["pipeline"]) == ("timm", "image-feature-extraction")
    ast.parse(usage_code(options["usage"]))  # timm is not there to run it
