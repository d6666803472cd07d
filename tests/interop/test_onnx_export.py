"""Without these, an ONNX graph could hold a constant batch size, or give other embeddings than ours."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, onnx_export, torch_export
from medvlp_jax.models import bert, clip_text, vit

for _name in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_name)

BERT = {**bert.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
CLIP_TEXT = {**clip_text.VARIANTS["test"], "vocab_size": 120, "max_positions": 40}
QUICK = ("convirt", "m3ae")  # ResNet, MLP heads; CLIP's ViT, fusion


def compare(trained: Any, folder: Any) -> None:
    """Runs every graph of a folder on 5 rows, neither of the sizes that the export itself tries."""
    import onnxruntime

    manifest = json.loads((folder / "manifest.json").read_text())
    plain = exporting.random_batch(trained, 5)
    full = {**plain, **torch_export.further(trained, 5)}
    given = {k: v.numpy() for k, v in torch_export.torch_batch(trained, full).items()}
    for function, entry in manifest["functions"].items():
        session = onnxruntime.InferenceSession(folder / entry["file"])
        names = [x["name"] for x in entry["inputs"]]
        assert [x.name for x in session.get_inputs()] == names
        got = session.run(None, {name: given[name] for name in names})[0]
        assert entry["outputs"][0]["shape"] == ["batch", *got.shape[1:]]
        ours = exporting.outputs(trained, full if "_with_" in function else plain)
        want = ours[entry["outputs"][0]["name"]]
        if got.ndim == 3:
            real = plain["attention_mask"] > 0
            got, want = got[real], want[real]
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()), rtol=1e-4)
        assert np.abs(got[0] - got[1]).max() > 1e-3  # the inputs do matter


@pytest.mark.parametrize("name", QUICK)
def test_graphs_give_our_outputs_at_any_batch_size(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(name)
    done = onnx_export.export(trained, tmp_path / "out")
    assert done.verified
    assert done.difference <= onnx_export.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    compare(trained, done.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("swin, padded windows and shifts", "densenet", "clip resnet", "multi_image"),
        *("frames of vit, mean", "resnet3d", "vit3d", "visual prompts", "siglip text"),
        *("clip prompts", "captioner beside two encoders", "captioner of frames"),
    ],
)
def test_every_tower(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(name)
    compare(trained, onnx_export.export(trained, tmp_path / "out").folder)


TEXT = {
    "clip text": clip_text.Encoder(**CLIP_TEXT),
    "clip text, eos id": clip_text.Encoder(**CLIP_TEXT, eos_token_id=7),
    "bert, last token": bert.Encoder(**BERT, pooling="eos"),
    "bert, attention": bert.Encoder(**BERT, pooling="attention"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
def test_poolings_of_texts(name: str, make_trained, tmp_path) -> None:
    trained = make_trained(text_encoder=TEXT[name])
    compare(trained, onnx_export.export(trained, tmp_path / "out").folder)


@pytest.mark.slow
def test_pooling_by_a_probe(make_trained, tmp_path) -> None:
    options = {**vit.VARIANTS["test/8"], "class_token": False, "pooling": "map"}
    trained = make_trained(image_encoder=vit.Encoder(**options))
    compare(trained, onnx_export.export(trained, tmp_path / "out").folder)


@pytest.mark.slow
def test_every_kind_of_model(any_trained, tmp_path) -> None:
    compare(any_trained, onnx_export.export(any_trained, tmp_path / "out").folder)


def test_files_opset_and_the_code_of_the_card(make_trained, tmp_path, usage_code) -> None:
    import onnx

    done = onnx_export.export(make_trained("gloria"), tmp_path / "out")
    assert {p.name for p in done.folder.iterdir()} == {
        "README.md",
        "encode_image.onnx",
        "encode_text.onnx",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = json.loads((done.folder / "manifest.json").read_text())
    graph = onnx.load(done.folder / "encode_text.onnx")
    versions = {x.domain: x.version for x in graph.opset_import}
    assert versions[""] == manifest["opset"] == onnx_export.OPSET
    assert manifest["functions"]["encode_text"]["inputs"][2] == {
        "name": "word_ids",
        "shape": ["batch", 16],
        "dtype": "int64",
    }
    names = "('medvlp_jax', 'jax', 'torch', 'transformers')"
    block = f"import sys\nfor name in {names}: sys.modules[name] = None\n"
    ran = subprocess.run(
        [sys.executable, "-c", block + usage_code(onnx_export.USAGE)],
        cwd=done.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("[[")


def test_weights_beyond_the_limit_of_a_file_lie_beside_it(
    make_trained, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(onnx_export, "_LIMIT", 0)
    trained = make_trained()
    done = onnx_export.export(trained, tmp_path / "out")
    assert (done.folder / "encode_image.onnx.data").is_file()
    compare(trained, done.folder)


def test_a_wrong_export_is_not_left_behind(make_trained, tmp_path, monkeypatch) -> None:
    tensors = torch_export.tensors

    def broken(trained: Any) -> dict[str, np.ndarray]:
        made = tensors(trained)
        return {**made, "text_projection.fc.weight": made["text_projection.fc.weight"] + 0.01}

    monkeypatch.setattr(torch_export, "tensors", broken)
    with pytest.raises(UserError, match="other embeddings in onnxruntime"):
        onnx_export.export(make_trained(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(make_trained, tmp_path, monkeypatch) -> None:
    find = onnx_export.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_export.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(UserError, match=r"needs onnxscript: pip install"):
        onnx_export.export(make_trained(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
