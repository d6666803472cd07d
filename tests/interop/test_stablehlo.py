"""Without these, a StableHLO export could give other embeddings, or fail in a process that only has jax."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, stablehlo


def call(folder: pathlib.Path, name: str, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Runs a program of a folder as its manifest says, without a line of our code."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry, weights = manifest["functions"][name], load_file(folder / manifest["weights"])
    program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
    given = [batch[x["name"]].astype(x["dtype"]) for x in entry["inputs"]]
    return np.asarray(program.call({k: weights[k] for k in entry["weights"]}, *given))


def test_programs_give_our_outputs_at_any_batch_size(any_trained, tmp_path) -> None:
    done = stablehlo.export(any_trained, tmp_path / "out")
    assert done.verified
    assert done.difference <= stablehlo.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    expected = {"encode_image": "image_embed", "encode_text": "text_embed"}
    if any_trained.model.fusion is not None:
        expected["fuse"] = "fused_pooled"
    # 5 rows: neither of the sizes that the export itself tries.
    batch = exporting.random_batch(any_trained, 5)
    ours = exporting.outputs(any_trained, batch)
    for name, output in expected.items():
        got = call(done.folder, name, batch)
        np.testing.assert_allclose(got, ours[output], atol=1e-5, rtol=1e-5)
        assert np.abs(got[0] - got[1]).max() > 1e-3  # the inputs do matter


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("swin, one window", "densenet", "clip resnet", "multi_image", "resnet3d", "vit3d"),
        *("frames of vit, mean", "visual prompts", "clip prompts", "captioner"),
        "captioner beside two encoders",
    ],
)
def test_every_tower_fits(name: str, make_trained, tmp_path) -> None:
    assert stablehlo.export(make_trained(name), tmp_path / "out").verified


def test_manifest_and_files(make_trained, tmp_path) -> None:
    done = stablehlo.export(make_trained("mgca"), tmp_path / "out")
    assert {p.name for p in done.folder.iterdir()} == {
        "README.md",
        "encode_image.stablehlo",
        "encode_text.stablehlo",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "image_token_projection and text_token_projection" in done.notes[0]
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["jax_version"] == jax.__version__
    assert manifest["image"]["mean"] == [0.5]
    assert manifest["logit_scale"] == 12.5
    image, text = (manifest["functions"][name] for name in ("encode_image", "encode_text"))
    assert image["inputs"] == [{"name": "image", "shape": ["batch", 32, 32, 3], "dtype": "float32"}]
    assert [x["name"] for x in text["inputs"]] == ["input_ids", "attention_mask"]
    assert image["outputs"] == [{"name": "image_embed", "shape": ["batch", 24], "dtype": "float32"}]
    stored = set(load_file(done.folder / "model.safetensors"))
    assert stored == set(image["weights"]) | set(text["weights"])
    assert not any("token_projection" in key for key in stored)
    program = jax.export.deserialize(
        bytearray((done.folder / "encode_image.stablehlo").read_bytes())
    )
    assert program.platforms == ("cpu", "cuda", "tpu")


def test_word_ids_are_an_input_where_the_embedding_depends_on_them(make_trained) -> None:
    assert "word_ids" in stablehlo.inputs(make_trained("gloria"), "encode_text")
    assert "word_ids" not in stablehlo.inputs(make_trained("mgca"), "encode_text")


def test_the_code_of_the_card_runs_without_our_package(make_trained, tmp_path, usage_code) -> None:
    done = stablehlo.export(make_trained("gloria"), tmp_path / "out")
    block = "import sys\nsys.modules['medvlp_jax'] = None\nsys.modules['flax'] = None\n"
    code = block + usage_code(stablehlo.USAGE)
    environment = {**os.environ, "XLA_FLAGS": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=done.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("[[")


def test_a_wrong_export_is_not_left_behind(make_trained, tmp_path, monkeypatch) -> None:
    trained = make_trained()
    stablehlo.export(trained, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    flat = stablehlo.flat_weights

    def broken(trained: Any) -> dict[str, np.ndarray]:
        weights = flat(trained)
        key = "params/text_projection/fc/kernel"
        return {**weights, key: weights[key] + 0.01}

    monkeypatch.setattr(stablehlo, "flat_weights", broken)
    for folder in ("out", "new"):
        with pytest.raises(UserError, match="other embeddings"):
            stablehlo.export(trained, tmp_path / folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_only_an_earlier_export_is_replaced(make_trained, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(UserError, match="no earlier export"):
        stablehlo.export(make_trained(), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["manifest.json"]
