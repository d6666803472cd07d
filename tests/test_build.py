"""Without these, a config could not name a tower inside another module, or start it from a checkpoint."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import common
from medvlp_jax import build, warm_start
from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import bert, causal_decoder, frames, multi_image, prompt_tuning, vit
from medvlp_jax.models.vision_language import innermost
from medvlp_jax.parallel.rules import flat_paths
from medvlp_jax.step import TrainState

TEXT = dict(name="bert", variant="test")
TOWER = dict(name="vit", variant="test/8", init="")


def config(**model):
    data = common.data(image=dict(size=32), text=dict(max_length=8))
    return common.assemble(data=data, model=dict(text_encoder=TEXT, **model))


def make(**model):
    return build.build_model(config(**model), vocab_size=64)


def inputs(**further) -> dict[str, jax.Array]:
    ids = jnp.ones((2, 8), jnp.int32)
    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    return {"image": image, "input_ids": ids, "attention_mask": ids, **further}


def test_a_tower_inside_a_module_is_built_from_its_own_group() -> None:
    model = make(image_encoder=dict(name="frames", pooling="max", tower=dict(TOWER)))
    assert isinstance(model.image_encoder, frames.Encoder)
    assert isinstance(model.image_encoder.tower, vit.Encoder)
    assert innermost(model.image_encoder).patch_size == 8
    video = jax.random.normal(jax.random.key(0), (2, 3, 32, 32, 3))
    present = jnp.array([[1.0, 1, 1], [1, 0, 0]])
    batch = inputs(image=video, image_present=present)
    variables = model.init(jax.random.key(0), batch)
    outputs = model.apply(variables, batch)
    # A frame that is not there changes nothing.
    changed = model.apply(variables, {**batch, "image": video.at[1, 1:].set(7.0)})
    np.testing.assert_array_equal(outputs["image_embed"], changed["image_embed"])


def test_learned_prompts_from_a_config() -> None:
    text = dict(name="prompt_tuning.TextPrompts", length=2, tower=dict(TEXT))
    setting = config(image_encoder=dict(TOWER))
    setting.model.text_encoder = ConfigDict(text)
    model = build.build_model(setting, vocab_size=64)
    assert isinstance(model.text_encoder, prompt_tuning.TextPrompts)
    assert isinstance(model.text_encoder.tower, bert.Encoder)
    assert innermost(model.text_encoder).vocab_size == 64
    paths = {p for p, _ in flat_paths(model.init(jax.random.key(0), inputs())["params"])}
    assert "text_encoder/prompts" in paths
    setting.model.text_encoder.tower.vocab_size = 64
    with pytest.raises(UserError, match=r"has 65 tokens but model\.text_encoder\.vocab_size is 64"):
        build.build_model(setting, vocab_size=65)


def test_prior_images_reach_a_tower_that_reads_them() -> None:
    setting = config(image_encoder=dict(name="multi_image", variant="test"))
    setting.data.image.update(prior=True)
    model = build.build_model(setting, vocab_size=64)
    assert isinstance(model.image_encoder, multi_image.Encoder)
    prior = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    batch = inputs(prior_image=prior, prior_mask=jnp.array([1.0, 0.0]))
    variables = model.init(jax.random.key(0), batch)
    embed = model.apply(variables, batch)["image_embed"]
    other = model.apply(variables, {**batch, "prior_image": -prior})["image_embed"]
    assert np.abs(embed[0] - other[0]).max() > 1e-3
    np.testing.assert_array_equal(embed[1], other[1])
    setting.model.image_encoder = ConfigDict(TOWER)
    with pytest.raises(UserError, match="prior=True needs an image encoder that reads prior"):
        build.build_model(setting, vocab_size=64)


def test_a_captioner_needs_no_text_encoder() -> None:
    decoder = dict(name="causal_decoder.Decoder", variant="test")
    setting = config(image_encoder=dict(TOWER), text_decoder=decoder)
    setting.model.text_encoder = None
    model = build.build_model(setting, vocab_size=64)
    assert isinstance(model.text_decoder, causal_decoder.Decoder)
    outputs = model.apply(model.init(jax.random.key(0), inputs()), inputs())
    assert outputs["decoder_logits"].shape == (2, 8, 64)
    assert not any(key.startswith("text_") for key in outputs)
    setting.model.text_decoder = None
    with pytest.raises(UserError, match=r"model\.text_encoder is missing.*or a text_decoder"):
        build.build_model(setting, vocab_size=64)


def test_a_tower_inside_a_module_starts_from_its_checkpoint(tmp_path) -> None:
    inner = vit.Encoder(**{**vit.VARIANTS["test/8"]})
    image = jnp.zeros((1, 32, 32, 3))
    values = jax.tree.map(
        lambda x: (
            np.full(x.shape, 0.5, np.float32)
            + np.arange(x.size, dtype=np.float32).reshape(x.shape) / x.size
        ),
        inner.init(jax.random.key(0), image)["params"],
    )
    file = tmp_path / "tower.safetensors"
    save_file(keys.to_torch(values, vit.TORCH_RULES), file)
    tower = {**TOWER, "init": str(file)}
    setting = config(image_encoder=dict(name="frames", tower=tower))
    sources = build.pretrained_sources(setting)
    assert sources == {("image_encoder", "tower"): str(file)}
    model = build.build_model(setting, vocab_size=64)
    batch = inputs(image=jnp.zeros((2, 3, 32, 32, 3)))
    params = {"model": model.init(jax.random.key(0), batch)["params"]}
    state = TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        opt_state=(),
        model_state={},
        rng=jax.random.key(0),
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = dataclasses.replace(state, params=jax.tree.map(lambda _: device, params))
    started = warm_start.warm_start(state, model, sources, placed).params["model"]
    for path, value in flat_paths(values):
        np.testing.assert_array_equal(
            dict(flat_paths(started["image_encoder"]["tower"]))[path], value
        )
