"""Without these, prompts could land in the wrong place, leak into the tokens, or move a frozen tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, clip_text, prompt_tuning, siglip_text, vit

TINY = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
TEXT = {**TINY, "vocab_size": 60, "max_positions": 20}
IMAGE = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
LENGTHS = np.array([9, 12, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(5, 58, (3, 12)).astype(np.int32)
IDS[:, 0] = 58
IDS[np.arange(3), LENGTHS - 1] = 59

TOWERS = {
    "bert": bert.Encoder(**TEXT, dropout=0.0),
    "clip_text": clip_text.Encoder(**TEXT, eos_token_id=59),
    "clip_text, highest id": clip_text.Encoder(**TEXT),
    "siglip_text": siglip_text.Encoder(**TEXT),
}


def _shapes(encoder, *inputs):
    return jax.eval_shape(lambda *x: encoder.init(jax.random.key(0), *x), *inputs)


def _apply(encoder, params, *inputs):
    return jax.jit(encoder.apply)({"params": params}, *inputs)


def test_bert_with_context_equals_transformers_on_the_same_embeddings(randomise, from_torch):
    import torch
    from transformers import BertConfig, BertModel

    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    config = BertConfig(vocab_size=60, max_position_embeddings=20, **sizes)
    theirs = randomise(BertModel(config))
    encoder = prompt_tuning.TextPrompts(TOWERS["bert"], length=3)
    params = from_torch(theirs, _shapes(TOWERS["bert"], IDS, MASK), bert.TORCH_RULES)["params"]
    prompts = np.random.default_rng(1).normal(size=(1, 3, 48)).astype(np.float32)
    out = _apply(encoder, {"tower": params, "prompts": prompts}, IDS, MASK)
    with torch.no_grad():
        words = theirs.embeddings.word_embeddings(torch.from_numpy(IDS).long())
        context = torch.from_numpy(prompts).expand(3, 3, 48)
        embeds = torch.cat([words[:, :1], context, words[:, 1:]], 1)
        mask = torch.from_numpy(np.concatenate([np.ones((3, 3), np.int64), MASK], 1))
        expected = theirs(inputs_embeds=embeds, attention_mask=mask)
    states = np.delete(expected.last_hidden_state.numpy(), [1, 2, 3], axis=1)
    real = MASK.astype(bool)
    np.testing.assert_allclose(np.asarray(out["tokens"])[real], states[real], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    np.testing.assert_array_equal(out["hidden"][-1], out["tokens"])


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_context_of_word_embeddings_equals_those_words(name, fill):
    tower = TOWERS[name]
    encoder = prompt_tuning.TextPrompts(tower, length=2)
    params = fill(_shapes(encoder, IDS, MASK))["params"]
    assert params["prompts"].shape == (1, 2, 48)
    plain = _shapes(tower, IDS, MASK)["params"]
    assert jax.tree.structure(params["tower"]) == jax.tree.structure(plain)
    words = np.array([7, 11])
    params["prompts"] = params["tower"]["word_embed"]["embedding"][words][None]
    out = _apply(encoder, params, IDS, MASK)
    ids = np.insert(IDS, [1, 1], words, axis=1)
    mask = np.insert(MASK, [1, 1], 1, axis=1)
    expected = _apply(tower, params["tower"], ids, mask)
    np.testing.assert_allclose(out["pooled"], expected["pooled"], atol=1e-5)
    tokens = np.delete(expected["tokens"], [1, 2], axis=1)
    np.testing.assert_allclose(out["tokens"], tokens, atol=1e-5)
    assert [x.shape[1] for x in out["hidden"]] == [12] * 3


def test_attention_is_that_of_all_positions(fill):
    tower = TOWERS["bert"].clone(last_attention=True)
    encoder = prompt_tuning.TextPrompts(tower, length=2)
    params = fill(_shapes(encoder, IDS, MASK))["params"]
    assert _apply(encoder, params, IDS, MASK)["attention"].shape == (3, 4, 14, 14)


@pytest.mark.parametrize("class_token", [True, False])
def test_visual_prompts_equal_registers_of_the_same_values(class_token, fill):
    """A register token differs from a prompt of VPT in nothing but its name and what it is trained with."""
    options = {**TINY, "patch_size": 8, "class_token": class_token}
    options["pooling"] = "cls" if class_token else "mean"
    tower = vit.Encoder(**options)
    encoder = prompt_tuning.VisualPrompts(tower, length=5)
    params = fill(_shapes(encoder, IMAGE))["params"]
    assert params["prompts"].shape == (1, 5, 48)
    plain = _shapes(tower, IMAGE)["params"]
    assert jax.tree.structure(params["tower"]) == jax.tree.structure(plain)
    out = _apply(encoder, params, IMAGE)
    registers = {**params["tower"], "register_tokens": params["prompts"]}
    expected = _apply(vit.Encoder(**options, registers=5), registers, IMAGE)
    np.testing.assert_allclose(out["tokens"], expected["tokens"], atol=1e-5)
    np.testing.assert_allclose(out["pooled"], expected["pooled"], atol=1e-5)
    np.testing.assert_array_equal(out["hidden"][1].shape, expected["hidden"][1].shape)
    without = _apply(tower, params["tower"], IMAGE)
    assert out["hidden"][-1].shape == without["hidden"][-1].shape
    assert np.abs(out["pooled"] - without["pooled"]).max() > 1e-3
    kept = np.array([[3, 0], [1, 2], [5, 9]])
    some = encoder.apply({"params": params}, IMAGE, keep_ids=kept)
    assert some["tokens"].shape == (3, 2, 48)


def test_training_the_prompts_alone_lowers_the_loss_and_leaves_the_tower(fill):
    encoder = prompt_tuning.VisualPrompts(vit.Encoder(**TINY, patch_size=8), length=4)
    params = fill(_shapes(encoder, IMAGE))["params"]
    target = np.random.default_rng(2).normal(size=(3, 48)).astype(np.float32)

    def loss(prompts):
        out = encoder.apply({"params": {**params, "prompts": prompts}}, IMAGE, train=True)
        return jnp.mean((out["pooled"] - target) ** 2)

    optimiser = optax.adam(0.05)
    step = jax.jit(jax.value_and_grad(loss))
    prompts, values = params["prompts"], []
    state = optimiser.init(prompts)
    for _ in range(20):
        value, gradient = step(prompts)
        updates, state = optimiser.update(gradient, state)
        prompts = optax.apply_updates(prompts, updates)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]


def test_unusable_settings_are_refused():
    tower = vit.Encoder(**TINY, patch_size=8)
    with pytest.raises(UserError, match="at least one vector"):
        _shapes(prompt_tuning.VisualPrompts(tower, length=0), IMAGE)
    with pytest.raises(UserError, match="remat='none', not 'full'"):
        _shapes(prompt_tuning.VisualPrompts(tower.clone(remat="full")), IMAGE)
    with pytest.raises(UserError, match="28 tokens is longer than the 20 positions"):
        _shapes(prompt_tuning.TextPrompts(TOWERS["bert"], length=16), IDS, MASK)
