"""Without these, files of timm, open_clip, BiomedCLIP, BioViL, CXR-BERT and the released Swin and ConvNeXt
code could load in part or into the wrong layers, or parts of them be dropped without a word.

timm is no dependency: the key lists here are those of its published files, written by hand, and the numbers
come from models of transformers whose tensors are renamed by functions of this file, not by our tables.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys, pretrained
from medvlp_jax.models import bert, convnext, resnet, swin, vit

torch = pytest.importorskip("torch")

IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
IDS = np.array([[2, 5, 9, 3, 0], [2, 7, 3, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)
VIT = dict(width=32, depth=2, heads=2, mlp_dim=64, patch_size=8)
BERT = dict(vocab_size=40, max_positions=16)
BERT_SIZES = dict(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)


def shapes(encoder, *inputs):
    return dict(jax.eval_shape(lambda *x: encoder.init(jax.random.key(0), *x), *inputs))


def apply(encoder, loaded, *inputs):
    return jax.jit(encoder.apply)(loaded.variables, *inputs)


def pixels(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def arrays(model, folder):
    """Tensors with the names of transformers' files, which are not those of its modules."""
    model.save_pretrained(folder / "theirs")
    return load_file(folder / "theirs" / "model.safetensors")


def saved(tensors, folder):
    path = folder / "x.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return str(path)


def fuse(tensors, pattern, names, template):
    """Joins tensors such as query, key and value; `pattern` finds the first of them."""
    out = dict(tensors)
    for key in tensors:
        match = re.fullmatch(pattern, key)
        if match:
            first = names[0]
            parts = [out.pop(key.replace(first, name)) for name in names]
            out[match.expand(template)] = np.concatenate(parts)
    return out


def renamed(tensors, steps):
    out = {}
    for key, value in tensors.items():
        for pattern, replacement in steps:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def pairs(*stems):
    return {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")}


# --- Swin ----------------------------------------------------------------------------------------


def swin_keys(depths, first_downsample):
    """Parameters of `swin_tiny_patch4_window7_224` and its like, without the head."""
    found = pairs("patch_embed.proj", "patch_embed.norm", "norm")
    for stage, depth in enumerate(depths):
        for k in range(depth):
            block = f"layers.{stage}.blocks.{k}"
            found |= pairs(*(f"{block}.{n}" for n in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")))
            found |= pairs(f"{block}.attn.qkv", f"{block}.attn.proj")
            found |= {f"{block}.attn.relative_position_bias_table"}
    for stage in range(first_downsample, first_downsample + len(depths) - 1):
        found |= {f"layers.{stage}.downsample.reduction.weight"}
        found |= pairs(f"layers.{stage}.downsample.norm")
    return found


@pytest.mark.parametrize(
    ("variant", "depths", "count"),
    [("T", (2, 2, 6, 2), 173), ("S", (2, 2, 18, 2), 329), ("B", (2, 2, 18, 2), 329)],
)
def test_swin_keys_are_those_of_the_published_files(variant, depths, count) -> None:
    encoder = swin.Encoder(**swin.VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flat = keys.flatten(shapes(encoder, image)["params"])
    for rules, first in ((swin.TIMM_RULES, 1), (swin.ORIGINAL_RULES, 0)):
        wanted = {key for key, _ in keys.match(flat, rules).values()}
        assert wanted == swin_keys(depths, first)
        assert len(wanted) + 2 == count  # with weight and bias of the classifier


@pytest.mark.parametrize("kind", ["timm Swin", "released Swin"])
def test_swin_of_timm_and_of_the_released_code_equals_transformers(
    kind, randomise, tmp_path
) -> None:
    from transformers import SwinConfig, SwinModel

    sizes = dict(embed_dim=8, depths=[2, 1, 1, 2], num_heads=[1, 2, 2, 4], window_size=2)
    config = SwinConfig(image_size=64, patch_size=4, **sizes)
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    theirs = randomise(SwinModel(config))
    tensors = {
        k: v for k, v in arrays(theirs, tmp_path).items() if not k.endswith("position_index")
    }
    tensors = renamed(
        tensors,
        [
            (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^embeddings\.norm", "patch_embed.norm"),
            (r"^encoder\.", ""),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"^layernorm", "norm"),
            (r"attention\.output\.dense", "attn.proj"),
            (r"attention\.self", "attn"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ],
    )
    if kind == "timm Swin":
        for stage in (2, 1, 0):  # from the end, so that no name is changed twice
            step = (rf"layers\.{stage}\.downsample", f"layers.{stage + 1}.downsample")
            tensors = renamed(tensors, [step])
    tensors = fuse(tensors, r"(.*\.attn)\.query\.(\w+)", ("query", "key", "value"), r"\1.qkv.\2")
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64),
        "layers.0.blocks.1.attn_mask": np.zeros((64, 4, 4), np.float32),
        "head.fc.weight": np.zeros((5, 64), np.float32),
    }
    ours = swin.Encoder(8, (2, 1, 1, 2), (1, 2, 2, 4), window=2)
    loaded = pretrained.load(ours, shapes(ours, image), saved(tensors | extra, tmp_path))
    assert (loaded.naming, loaded.prefix) == (kind, "")
    assert set(loaded.ignored) == set(extra)
    assert set(loaded.ignored.values()) == {"table that is computed", "head of another task"}
    with torch.no_grad():
        expected = theirs(pixels(image))
    out = apply(ours, loaded, image)
    np.testing.assert_allclose(out["tokens"], expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)


# --- ConvNeXt ------------------------------------------------------------------------------------


def convnext_keys(depths, kind):
    """Parameters of timm's `convnext_tiny` or of the released `convnext_tiny_1k_224`, without the head."""
    timm = kind == "timm ConvNeXt"
    found = pairs("head.norm" if timm else "norm")
    stem = "stem" if timm else "downsample_layers.0"
    found |= pairs(f"{stem}.0", f"{stem}.1")
    for stage, depth in enumerate(depths):
        if stage:
            down = f"stages.{stage}.downsample" if timm else f"downsample_layers.{stage}"
            found |= pairs(f"{down}.0", f"{down}.1")
        for k in range(depth):
            block = f"stages.{stage}.blocks.{k}" if timm else f"stages.{stage}.{k}"
            names = ("conv_dw", "mlp.fc1", "mlp.fc2") if timm else ("dwconv", "pwconv1", "pwconv2")
            found |= pairs(*(f"{block}.{n}" for n in (*names, "norm"))) | {f"{block}.gamma"}
    return found


@pytest.mark.parametrize(
    ("variant", "depths", "count"),
    [("T", (3, 3, 9, 3), 182), *((size, (3, 3, 27, 3), 344) for size in "SBL")],
)
def test_convnext_keys_are_those_of_the_published_files(variant, depths, count) -> None:
    encoder = convnext.Encoder(**convnext.VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flat = keys.flatten(shapes(encoder, image)["params"])
    for kind in ("timm ConvNeXt", "released ConvNeXt"):
        wanted = {key for key, _ in keys.match(flat, convnext.SOURCES[kind]).values()}
        assert wanted == convnext_keys(depths, kind)
        assert len(wanted) + 2 == count  # with weight and bias of the classifier


@pytest.mark.parametrize("kind", ["timm ConvNeXt", "released ConvNeXt"])
def test_convnext_of_timm_and_of_the_released_code_equals_transformers(
    kind, randomise, tmp_path
) -> None:
    from transformers import ConvNextConfig, ConvNextModel

    sizes = dict(hidden_sizes=[8, 12], depths=[1, 2])
    theirs = randomise(ConvNextModel(ConvNextConfig(**sizes, num_stages=2, patch_size=4)))
    timm = kind == "timm ConvNeXt"
    steps = [
        (r"^embeddings\.patch_embeddings", "stem.0" if timm else "downsample_layers.0.0"),
        (r"^embeddings\.layernorm", "stem.1" if timm else "downsample_layers.0.1"),
        (r"^layernorm", "head.norm" if timm else "norm"),
        (r"^encoder\.", ""),
        (r"layernorm", "norm"),
        (r"layer_scale_parameter", "gamma"),
    ]
    if timm:
        steps += [(r"\.layers\.", ".blocks."), ("dwconv", "conv_dw"), ("pwconv", "mlp.fc")]
        steps += [("downsampling_layer", "downsample")]
    else:
        steps += [
            (r"\.layers\.", "."),
            (r"stages\.(\d)\.downsampling_layer", r"downsample_layers.\1"),
        ]
    tensors = renamed(arrays(theirs, tmp_path), steps)
    head = "head.fc.weight" if timm else "head.weight"
    tensors[head] = np.zeros((5, 12), np.float32)
    ours = convnext.Encoder((8, 12), (1, 2), 4)
    loaded = pretrained.load(ours, shapes(ours, IMAGE), saved(tensors, tmp_path))
    assert (loaded.naming, loaded.prefix) == (kind, "")
    assert loaded.ignored == {head: "head of another task"}
    with torch.no_grad():
        expected = theirs(pixels(IMAGE)).pooler_output
    np.testing.assert_allclose(apply(ours, loaded, IMAGE)["pooled"], expected, atol=1e-4)


# --- ViT of timm ---------------------------------------------------------------------------------


def vit_keys(depth, *more):
    """Parameters of `vit_base_patch16_224` and its like without class token and head."""
    found = pairs("norm", *more) | {"pos_embed", "patch_embed.proj.weight"}
    for k in range(depth):
        parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        found |= pairs(*(f"blocks.{k}.{n}" for n in parts))
    return found


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("B/16", vit_keys(12, "patch_embed.proj") | {"cls_token"}),
        ("clip-B/16", vit_keys(12, "norm_pre") | {"cls_token"}),  # vit_base_patch16_clip_224
        (  # vit_base_patch16_siglip_224
            "siglip-B/16",
            vit_keys(
                12, "patch_embed.proj",
                *(f"attn_pool.{n}" for n in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")),
            ) | {"attn_pool.latent"},
        ),
    ],
)  # fmt: skip
def test_vit_keys_are_those_of_timm(variant, expected) -> None:
    encoder = vit.Encoder(**vit.VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flat = keys.flatten(shapes(encoder, image)["params"])
    assert {key for key, _ in keys.match(flat, vit.TIMM_RULES).values()} == expected


SIGLIP = dict(class_token=False, activation="gelu_tanh")


def timm_siglip(randomise, tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    theirs = randomise(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8)))
    tensors = arrays(theirs, tmp_path)
    for leaf in ("weight", "bias"):
        fused = tensors.pop(f"head.attention.in_proj_{leaf}")
        tensors[f"attn_pool.q.{leaf}"], tensors[f"attn_pool.kv.{leaf}"] = np.split(fused, [32])
    tensors["pos_embed"] = tensors.pop("embeddings.position_embedding.weight")[None]
    tensors = renamed(
        tensors,
        [
            (r"^embeddings\.patch_embedding", "patch_embed.proj"),
            (r"^encoder\.layers", "blocks"),
            (r"^post_layernorm", "norm"),
            (r"^head\.probe", "attn_pool.latent"),
            (r"^head\.attention\.out_proj", "attn_pool.proj"),
            (r"^head\.layernorm", "attn_pool.norm"),
            (r"^head\.mlp", "attn_pool.mlp"),
            (r"layer_norm(\d)", r"norm\1"),
            (r"self_attn\.out_proj", "attn.proj"),
            (r"self_attn", "attn"),
        ],
    )
    names = ("q_proj", "k_proj", "v_proj")
    return theirs, fuse(tensors, r"(.*\.attn)\.q_proj\.(\w+)", names, r"\1.qkv.\2")


def test_siglip_of_timm_equals_transformers(randomise, tmp_path) -> None:
    theirs, tensors = timm_siglip(randomise, tmp_path)
    path = saved({f"visual.trunk.{k}": v for k, v in tensors.items()}, tmp_path)
    ours = vit.Encoder(**VIT, **SIGLIP, pooling="map")
    loaded = pretrained.load(ours, shapes(ours, IMAGE), path)
    assert (loaded.naming, loaded.prefix) == ("timm, MAE or DINOv2", "visual.trunk.")
    assert not loaded.ignored
    with torch.no_grad():
        expected = theirs(pixels(IMAGE)).pooler_output
    np.testing.assert_allclose(apply(ours, loaded, IMAGE)["pooled"], expected, atol=1e-4)
    mean = vit.Encoder(**VIT, **SIGLIP, pooling="mean")
    loaded = pretrained.load(mean, shapes(mean, IMAGE), path)
    assert set(loaded.ignored) == {k for k in tensors if k.startswith("attn_pool.")}
    assert set(loaded.ignored.values()) == {"pooler, which the config's pooling does not use"}


# --- medical checkpoints -------------------------------------------------------------------------


def biomedclip(randomise, fill, tmp_path):
    """open_clip's names of a BERT and a timm ViT, as in BiomedCLIP's `open_clip_pytorch_model.bin`."""
    from transformers import BertConfig, BertModel

    theirs = randomise(BertModel(BertConfig(**BERT_SIZES), add_pooling_layer=False))
    image = vit.Encoder(**VIT)
    params = fill(shapes(image, IMAGE))["params"]
    trunk = keys.to_torch(params, vit.TIMM_RULES)
    assert set(trunk) == vit_keys(2, "patch_embed.proj") | {"cls_token"}
    tensors = {f"text.transformer.{k}": v for k, v in arrays(theirs, tmp_path).items()}
    tensors |= {f"visual.trunk.{k}": v for k, v in trunk.items()}
    tensors |= {
        "text.transformer.embeddings.position_ids": np.arange(16)[None],
        "text.proj.0.weight": np.zeros((24, 32), np.float32),
        "text.proj.2.weight": np.zeros((16, 24), np.float32),
        "visual.head.proj.weight": np.zeros((16, 32), np.float32),
        "logit_scale": np.zeros((), np.float32),
    }
    return theirs, params, tensors


def test_both_towers_of_biomedclip(randomise, fill, tmp_path) -> None:
    theirs, params, tensors = biomedclip(randomise, fill, tmp_path)
    state = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    image = vit.Encoder(**VIT)
    loaded = pretrained.load(image, {"params": params}, str(tmp_path))
    assert loaded.prefix == "visual.trunk."
    text_count = sum(k.startswith("text.") for k in tensors)
    assert loaded.outside == {"text": text_count, "visual.head": 1, "logit_scale": 1}
    assert "other parts of the file): logit_scale (1 tensors), text" in loaded.report()
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], dict(params))
    text = bert.Encoder(32, 2, 2, 64, **BERT, pooling="cls")
    loaded = pretrained.load(text, shapes(text, IDS, MASK), str(tmp_path))
    assert loaded.prefix == "text.transformer."
    visual = sum(k.startswith("visual.") for k in tensors)
    assert loaded.outside == {"text.proj": 2, "visual": visual, "logit_scale": 1}
    assert loaded.ignored == {"embeddings.position_ids": "table that is computed"}
    assert not loaded.random
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS).long(), torch.from_numpy(MASK)).last_hidden_state
    out = apply(text, loaded, IDS, MASK)
    np.testing.assert_allclose(out["pooled"], expected[:, 0], atol=1e-4)


def test_cxr_bert(randomise, tmp_path) -> None:
    """BERT with a masked-language head and a projection; it has no pooler, so a pooler stays random."""
    from transformers import BertConfig, BertForMaskedLM

    theirs = randomise(BertForMaskedLM(BertConfig(**BERT_SIZES)))
    head = "cls_projection_head"
    extra = {
        f"{head}.dense_to_hidden.weight": np.zeros((16, 32), np.float32),
        f"{head}.LayerNorm.weight": np.zeros(16, np.float32),
        f"{head}.dense_to_output.weight": np.zeros((16, 16), np.float32),
    }
    path = saved(arrays(theirs, tmp_path) | extra, tmp_path)
    ours = bert.Encoder(32, 2, 2, 64, **BERT, pooling="cls")
    loaded = pretrained.load(ours, shapes(ours, IDS, MASK), path)
    assert loaded.prefix == "bert."
    assert set(loaded.outside) == {"cls", head}
    assert not loaded.random
    with torch.no_grad():
        expected = theirs.bert(torch.from_numpy(IDS).long(), torch.from_numpy(MASK))
    out = apply(ours, loaded, IDS, MASK)
    np.testing.assert_allclose(out["pooled"], expected.last_hidden_state[:, 0], atol=1e-4)
    pooler = bert.Encoder(32, 2, 2, 64, **BERT, pooling="pooler")
    loaded = pretrained.load(pooler, shapes(pooler, IDS, MASK), path)
    assert set(loaded.random) == {"pooler/kernel", "pooler/bias"}
    assert "not in the file, so random: pooler/" in loaded.report()


def test_image_encoder_of_biovil(fill, tmp_path) -> None:
    """torchvision's names below `encoder.encoder.`; BioViL-T adds a ViT that compares two images."""
    ours = resnet.Encoder(**resnet.VARIANTS["test"])
    variables = fill(shapes(ours, IMAGE))
    merged = keys.flatten(variables["params"]) | keys.flatten(variables["batch_stats"])
    tensors = keys.to_torch(keys.unflatten(merged), resnet.TORCHVISION_RULES)
    assert {"conv1.weight", "bn1.running_var", "layer4.0.downsample.1.weight"} <= set(tensors)
    tensors = {f"encoder.encoder.{k}": v for k, v in tensors.items()}
    tensors |= {
        "encoder.encoder.bn1.num_batches_tracked": np.zeros((), np.int64),
        "encoder.vit_pooler.blocks.0.norm1.weight": np.zeros(8, np.float32),
        "encoder.missing_previous_emb": np.zeros(8, np.float32),
        "projector.model.0.weight": np.zeros((8, 8), np.float32),
    }
    loaded = pretrained.load(ours, variables, saved(tensors, tmp_path))
    assert loaded.prefix == "encoder.encoder."
    assert loaded.naming.endswith("TORCHVISION_RULES")
    assert loaded.ignored == {"bn1.num_batches_tracked": "counter"}
    assert loaded.outside == {
        "encoder.vit_pooler": 1,
        "encoder.missing_previous_emb": 1,
        "projector": 1,
    }
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, dict(variables))


def test_a_part_of_the_tower_that_no_parameter_takes_is_refused(randomise, fill, tmp_path) -> None:
    """Only what `IGNORED` gives a reason for may be left over below the prefix."""
    _, params, tensors = biomedclip(randomise, fill, tmp_path)
    path = saved({**tensors, "visual.trunk.adapter.weight": np.zeros(3, np.float32)}, tmp_path)
    image = vit.Encoder(**VIT)
    with pytest.raises(UserError, match=r"adapter\.weight \(3,\): no parameter takes it"):
        pretrained.load(image, {"params": params}, path)


# --- other whole files ---------------------------------------------------------------------------


def test_mae_file_with_its_decoder_and_command_line(fill, tmp_path) -> None:
    import argparse

    image = vit.Encoder(**VIT)
    params = fill(shapes(image, IMAGE))["params"]
    tensors = keys.to_torch(params, vit.TIMM_RULES)
    decoder = {
        "mask_token": np.zeros((1, 1, 16), np.float32),
        "decoder_pos_embed": np.zeros((1, 17, 16), np.float32),
        "decoder_blocks.0.norm1.weight": np.zeros(16, np.float32),
        "decoder_pred.weight": np.zeros((192, 16), np.float32),
    }
    state = {k: torch.from_numpy(np.array(v)) for k, v in (tensors | decoder).items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "mae.pth")
    loaded = pretrained.load(image, {"params": params}, f"{tmp_path}/mae.pth")
    assert set(loaded.ignored) == set(decoder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], dict(params))


def test_roberta_with_its_language_model_head(randomise, tmp_path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(**BERT_SIZES, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)
    theirs = randomise(RobertaForMaskedLM(config))
    theirs.save_pretrained(tmp_path)
    options = dict(token_types=1, layer_norm_eps=1e-5, position_ids="roberta", pooling="cls")
    ours = bert.Encoder(32, 2, 2, 64, **BERT, **options)
    loaded = pretrained.load(ours, shapes(ours, IDS, MASK), str(tmp_path))
    assert loaded.prefix == "roberta."
    assert set(loaded.outside) == {"lm_head"}
    ids = np.where(MASK == 1, IDS, 1)
    with torch.no_grad():
        expected = theirs.roberta(torch.from_numpy(ids).long(), torch.from_numpy(MASK))
    out = apply(ours, loaded, ids, MASK)
    np.testing.assert_allclose(out["pooled"], expected.last_hidden_state[:, 0], atol=1e-4)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_transformers_classifiers(kind, randomise, tmp_path) -> None:
    import transformers as t

    if kind == "swin":
        sizes = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        theirs = t.SwinForImageClassification(t.SwinConfig(image_size=32, patch_size=4, **sizes))
        ours = swin.Encoder(**swin.VARIANTS["test"])
    else:
        sizes = dict(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1])
        theirs = t.ResNetForImageClassification(t.ResNetConfig(**sizes))
        ours = resnet.Encoder(**resnet.VARIANTS["test"])
    randomise(theirs).save_pretrained(tmp_path)
    loaded = pretrained.load(ours, shapes(ours, IMAGE), str(tmp_path))
    assert loaded.prefix == f"{kind}."
    assert set(loaded.outside) == {"classifier"}
    assert not loaded.random
    with torch.no_grad():
        expected = getattr(theirs, kind)(pixels(IMAGE)).pooler_output.flatten(1)
    np.testing.assert_allclose(apply(ours, loaded, IMAGE)["pooled"], expected, atol=1e-4)
