"""Without these, a model rebuilt in PyTorch could read prior images, frames or captions unlike ours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvlp_jax.interop import exporting, torch_export

torch = pytest.importorskip("torch")


def outputs(folder, trained, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the package of a folder on a batch."""
    model = torch_export.load_package(folder)
    with torch.inference_mode():
        got = torch_export.package_outputs(model, trained, batch)
    return {key: value.numpy() for key, value in got.items()}


@pytest.mark.slow
def test_a_prior_image_is_an_optional_input(make_trained, tmp_path) -> None:
    trained = make_trained("multi_image")
    done = torch_export.export(trained, tmp_path / "out")
    batch = exporting.random_batch(trained, 3)
    prior = np.random.default_rng(7).normal(size=batch["image"].shape).astype(np.float32)
    known = {**batch, "prior_image": prior, "prior_mask": np.array([1, 0, 1], np.float32)}
    with_prior = outputs(done.folder, trained, known)["image_embed"]
    alone = outputs(done.folder, trained, batch)["image_embed"]
    np.testing.assert_allclose(
        with_prior, exporting.outputs(trained, known)["image_embed"], atol=1e-5
    )
    np.testing.assert_allclose(with_prior[1], alone[1], atol=1e-5)
    assert np.abs(with_prior[[0, 2]] - alone[[0, 2]]).max(-1).min() > 1e-3
    manifest = json.loads((done.folder / "manifest.json").read_text())
    shape = ["batch", 3, 32, 32]
    assert manifest["optional_inputs"] == {"prior_pixels": shape, "prior_mask": ["batch"]}


def test_frames_that_are_not_real_have_no_influence(make_trained, tmp_path) -> None:
    trained = make_trained("frames of vit, mean")
    done = torch_export.export(trained, tmp_path / "out")
    batch = exporting.random_batch(trained, 2)
    batch["image_present"] = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    got = outputs(done.folder, trained, batch)["image_embed"]
    np.testing.assert_allclose(got, exporting.outputs(trained, batch)["image_embed"], atol=1e-5)
    batch["image"][0, 2], batch["image"][1, 1:] = 100.0, np.nan
    np.testing.assert_allclose(outputs(done.folder, trained, batch)["image_embed"], got, atol=1e-6)
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["inputs"]["encode_image"] == {"pixels": ["batch", 3, 3, 32, 32]}
    assert manifest["optional_inputs"] == {"frame_mask": ["batch", 3]}


def test_a_caption_is_decoded_token_by_token(make_trained, tmp_path) -> None:
    """The scores of a token do not change when the text goes on."""
    trained = make_trained("captioner")
    done = torch_export.export(trained, tmp_path / "out")
    batch = exporting.random_batch(trained, 2)
    batch["attention_mask"] = np.ones_like(batch["attention_mask"])
    got = outputs(done.folder, trained, batch)
    assert set(got) == {"image_embed", "decoder_logits"}
    ours = exporting.outputs(trained, batch)["decoder_logits"]
    scale = np.abs(ours).max()
    np.testing.assert_allclose(got["decoder_logits"] / scale, ours / scale, atol=1e-5)
    batch["input_ids"][:, 9:] = 3
    again = outputs(done.folder, trained, batch)["decoder_logits"]
    np.testing.assert_allclose(again[:, :9], got["decoder_logits"][:, :9], atol=1e-4 * scale)
    model = torch_export.load_package(done.folder)
    given = torch_export.torch_batch(trained, batch)
    with pytest.raises(ValueError, match="no text encoder"):
        model.encode_text(given["input_ids"], given["attention_mask"])
