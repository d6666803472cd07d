"""Without these, frames that are only padding could change the embedding, or a 2-D checkpoint not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys, pretrained
from medvlp_jax.models import frames, resnet, vit

SIZES = {"patch_size": 8, "width": 32, "depth": 1, "heads": 2, "mlp_dim": 64}
VIDEO = np.random.default_rng(0).normal(size=(2, 3, 16, 16, 3)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0]])


def _shapes(encoder):
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x), VIDEO)


def _apply(encoder, variables, video=VIDEO, mask=None):
    return jax.jit(encoder.apply)(variables, video, mask)


def test_each_pooling_is_that_of_the_towers_outputs(fill):
    tower = vit.Encoder(**SIZES)
    for kind in ("mean", "max", "attention"):
        encoder = frames.Encoder(tower, pooling=kind)
        variables = fill(_shapes(encoder))
        out = _apply(encoder, variables, mask=MASK)
        single = [
            jax.jit(tower.apply)({"params": variables["params"]["tower"]}, VIDEO[:, t])
            for t in range(3)
        ]
        rows = np.stack([x["pooled"] for x in single], axis=1)
        real = MASK.astype(bool)
        np.testing.assert_allclose(out["frames"][real], rows[real], atol=1e-5)
        tokens = np.concatenate([x["tokens"] for x in single], axis=1)
        np.testing.assert_array_equal(out["token_mask"], np.repeat(MASK, 4, axis=1))
        real = out["token_mask"].astype(bool)
        np.testing.assert_allclose(out["tokens"][real], tokens[real], atol=1e-5)
        if kind != "attention":
            reduce = np.mean if kind == "mean" else np.max
            np.testing.assert_allclose(out["pooled"][0], reduce(rows[0], axis=0), atol=1e-5)
            np.testing.assert_allclose(out["pooled"][1], rows[1, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_frames_that_are_not_real_have_no_influence(fill, kind):
    encoder = frames.Encoder(vit.Encoder(**SIZES), pooling=kind)
    variables = fill(_shapes(encoder))
    video = VIDEO.copy()
    video[MASK == 0] = np.nan

    def loss(v, x):
        return jnp.sum(encoder.apply(v, x, MASK)["pooled"] ** 2)

    run = jax.jit(jax.value_and_grad(loss))
    for a, b in zip(
        jax.tree.leaves(run(variables, VIDEO)), jax.tree.leaves(run(variables, video)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    shorter = _apply(encoder, variables, VIDEO[1:, :1])["pooled"]
    np.testing.assert_allclose(
        _apply(encoder, variables, mask=MASK)["pooled"][1], shorter[0], atol=1e-5
    )
    empty = _apply(encoder, variables, mask=np.array([[1, 1, 1], [0, 0, 0]]))["pooled"]
    assert np.isfinite(empty).all()
    if kind != "attention":
        np.testing.assert_array_equal(empty[1], 0)


def test_order_of_frames_does_not_matter_and_their_content_does(fill):
    encoder = frames.Encoder(vit.Encoder(**SIZES), pooling="attention")
    variables = fill(_shapes(encoder))
    out = _apply(encoder, variables)["pooled"]
    np.testing.assert_allclose(_apply(encoder, variables, VIDEO[:, ::-1])["pooled"], out, atol=1e-5)
    changed = VIDEO.copy()
    changed[:, 2] = 0
    assert np.abs(_apply(encoder, variables, changed)["pooled"] - out).max(-1).min() > 1e-4


def test_checkpoint_of_the_image_tower_fits(fill, tmp_path):
    encoder = frames.Encoder(vit.Encoder(**SIZES))
    shapes = _shapes(encoder)["params"]
    flat = jax.eval_shape(lambda: encoder.tower.init(jax.random.key(0), VIDEO[:, 0]))["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == {
        "tower": jax.tree.map(lambda x: x.shape, flat)
    }
    params = fill(flat)
    save_file(keys.to_torch(params, vit.TIMM_RULES), tmp_path / "x.safetensors")
    loaded = pretrained.load(
        encoder.tower, {"params": shapes["tower"]}, f"{tmp_path}/x.safetensors"
    )
    out = _apply(encoder, {"params": {"tower": loaded.variables["params"]}}, VIDEO[:, :1])
    expected = encoder.tower.apply({"params": params}, VIDEO[:, 0])
    np.testing.assert_allclose(out["pooled"], expected["pooled"], atol=1e-5)


def test_a_tower_with_running_statistics_updates_them(fill):
    encoder = frames.Encoder(resnet.Encoder(**resnet.VARIANTS["test"]))
    variables = fill(_shapes(encoder))
    assert set(variables) == {"params", "batch_stats"}
    run = jax.jit(lambda v: encoder.apply(v, VIDEO, train=True, mutable=["batch_stats"]))
    out, changed = run(variables)
    assert out["pooled"].shape == (2, 256)
    before = variables["batch_stats"]["tower"]["stem_norm"]["mean"]
    assert np.abs(changed["batch_stats"]["tower"]["stem_norm"]["mean"] - before).max() > 1e-4


def test_wrong_inputs_are_refused():
    encoder = frames.Encoder(vit.Encoder(**SIZES))
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"videos \[B,T,H,W,C\]"):
        encoder.init(key, VIDEO[:, 0])
    with pytest.raises(UserError, match=r"frame_mask has shape \(2, 2\), the video 2 x 3"):
        encoder.init(key, VIDEO, MASK[:, :2])
    with pytest.raises(UserError, match="subset of the patches"):
        encoder.init(key, VIDEO, keep_ids=np.zeros((2, 2), np.int32))
    with pytest.raises(UserError, match="choose mean, max or attention"):
        _shapes(frames.Encoder(vit.Encoder(**SIZES), pooling="sum"))
