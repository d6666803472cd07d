"""Without these, GPT-2 weights could load and compute something else, or a caption could see its future."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import causal_decoder

TINY = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96, "vocab_size": 60, "max_positions": 20}
LENGTHS = np.array([9, 12, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
REAL = MASK.astype(bool)
IDS = np.random.default_rng(0).integers(5, 60, (3, 12)).astype(np.int32)
CONTEXT = np.random.default_rng(1).normal(size=(3, 7, 48)).astype(np.float32)
CONTEXT_MASK = (np.arange(7) < np.array([7, 4, 6])[:, None]).astype(np.int32)

PARAMETERS = {
    "quickstart": 11_479_296,  # ours
    # "small" is transformers' GPT2LMHeadModel with the published weights ("124M"). By hand, with D wide
    # context: V*D + P*D + depth * (16 D^2 + 19 D) + 2 D, where without cross-attention it is 12 D^2 + 13 D.
    "test": 54_528,
    "small": 124_439_808,
    "captioner": 51_218_944,
}


def _context(encoder, width=48):
    return jnp.zeros((3, 7, width)) if encoder.cross_attention else None


def _shapes(decoder, width=48):
    context = _context(decoder, width)
    return jax.eval_shape(lambda: decoder.init(jax.random.key(0), IDS, MASK, context))


def _apply(decoder, variables, ids=IDS, mask=MASK, context=CONTEXT, context_mask=CONTEXT_MASK):
    if not decoder.cross_attention:
        context = context_mask = None
    return jax.jit(lambda v: decoder.apply(v, ids, mask, context, context_mask))(variables)


def _model(randomise, cross_attention, tied=True, **options):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=60,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_inner=96,
        n_positions=20,
        bos_token_id=59,
        eos_token_id=59,
        add_cross_attention=cross_attention,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        **options,
    )
    return randomise(GPT2LMHeadModel(config))


def _load(model, decoder, tmp_path):
    from safetensors.numpy import load_file

    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    params = keys.from_torch(tensors, _shapes(decoder)["params"], causal_decoder.TORCH_RULES)
    return tensors, {"params": params}


def _torch_inputs(cross_attention):
    import torch

    inputs = {
        "input_ids": torch.from_numpy(IDS).long(),
        "attention_mask": torch.from_numpy(MASK).long(),
    }
    if cross_attention:
        inputs["encoder_hidden_states"] = torch.from_numpy(CONTEXT)
        inputs["encoder_attention_mask"] = torch.from_numpy(CONTEXT_MASK).long()
    return inputs


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(causal_decoder.VARIANTS)
    for name, expected in PARAMETERS.items():
        decoder = causal_decoder.Decoder(**causal_decoder.VARIANTS[name])
        shapes = _shapes(decoder, decoder.width)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("cross_attention", [False, True])
def test_decoder_and_each_block_equal_transformers_gpt2(randomise, tmp_path, cross_attention):
    import torch

    theirs = _model(randomise, cross_attention)
    ours = causal_decoder.Decoder(**TINY, cross_attention=cross_attention, last_attention=True)
    tensors, variables = _load(theirs, ours, tmp_path)
    with torch.no_grad():
        expected = theirs(
            **_torch_inputs(cross_attention), output_hidden_states=True, output_attentions=True
        )
    out = _apply(ours, variables)
    assert len(out["hidden"]) == 3
    for i in (0, 1):
        theirs_i = expected.hidden_states[i].numpy()[REAL]
        np.testing.assert_allclose(np.asarray(out["hidden"][i])[REAL], theirs_i, atol=1e-5)
    tokens, logits = np.asarray(out["tokens"])[REAL], np.asarray(out["logits"])[REAL]
    np.testing.assert_allclose(tokens, expected.hidden_states[-1].numpy()[REAL], atol=1e-4)
    np.testing.assert_allclose(logits, expected.logits.numpy()[REAL], atol=1e-4)
    probs = (expected.cross_attentions if cross_attention else expected.attentions)[-1]
    np.testing.assert_allclose(out["attention"][0, :, :9], probs[0, :, :9], atol=1e-5)

    back = keys.to_torch(variables["params"], causal_decoder.TORCH_RULES)
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.slow
def test_full_size_gpt2_equals_transformers_gpt2(randomise, tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = randomise(GPT2LMHeadModel(GPT2Config(attn_implementation="eager")))
    ours = causal_decoder.Decoder(**causal_decoder.VARIANTS["small"])
    _, variables = _load(theirs, ours, tmp_path)
    ids = np.random.default_rng(0).integers(0, 50257, (2, 64)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).logits
    logits = _apply(ours, variables, ids, np.ones((2, 64)))["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_an_output_layer_of_its_own_equals_that_of_transformers_gpt2(randomise, tmp_path):
    import torch

    theirs = _model(randomise, False, tied=False)
    ours = causal_decoder.Decoder(**TINY, tied=False)
    tensors, variables = _load(theirs, ours, tmp_path)
    assert "lm_head.weight" in tensors
    with torch.no_grad():
        expected = theirs(**_torch_inputs(False)).logits.numpy()
    logits = np.asarray(_apply(ours, variables)["logits"])
    np.testing.assert_allclose(logits[REAL], expected[REAL], atol=1e-4)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_gradients_of_the_language_loss_equal_transformers_gpt2(
    randomise, tmp_path, assert_same_gradient, cross_attention
):
    import torch

    theirs = _model(randomise, cross_attention, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    theirs = theirs.train()
    ours = causal_decoder.Decoder(**TINY, cross_attention=cross_attention, dropout=0.0)
    _, variables = _load(theirs, ours, tmp_path)
    labels = np.where(REAL, IDS, -100)
    loss = theirs(**_torch_inputs(cross_attention), labels=torch.from_numpy(labels).long()).loss
    loss.backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    _, expected = _load(theirs, ours, tmp_path)
    context = (CONTEXT, CONTEXT_MASK) if cross_attention else ()

    def objective(v):
        logits = ours.apply(v, IDS, MASK, *context, train=True)["logits"]
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        picked = jnp.take_along_axis(log_probs, IDS[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * MASK[:, 1:]) / MASK[:, 1:].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(variables)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_same_gradient(grads, expected)


def test_a_token_sees_neither_the_future_nor_padding_nor_masked_context(fill):
    decoder = causal_decoder.Decoder(**TINY, cross_attention=True)
    variables = fill(_shapes(decoder))
    out = _apply(decoder, variables)["logits"]
    noise = np.where(REAL, IDS, (IDS + 17) % 60)
    hidden_context = np.where(CONTEXT_MASK[..., None] == 1, CONTEXT, 1e3).astype(np.float32)
    changed = _apply(decoder, variables, ids=noise, context=hidden_context)["logits"]
    np.testing.assert_array_equal(np.asarray(changed)[REAL], np.asarray(out)[REAL])
    later = IDS.copy()
    later[:, 4] = (later[:, 4] + 1) % 60
    changed = _apply(decoder, variables, ids=later)["logits"]
    np.testing.assert_array_equal(changed[:, :4], out[:, :4])
    assert np.abs(changed[1, 4:] - out[1, 4:]).max(-1).min() > 1e-4
    other = CONTEXT.copy()
    other[:, 0] += 1
    changed = _apply(decoder, variables, context=other)["logits"]
    assert np.abs(np.asarray(changed - out))[REAL].max(-1).min() > 1e-4


def test_context_of_another_width_and_no_context_mask(fill):
    decoder = causal_decoder.Decoder(**TINY, cross_attention=True)
    variables = fill(_shapes(decoder, width=20))
    kernel = variables["params"]["block_0"]["cross_attention"]["key"]["kernel"]
    assert kernel.shape == (20, 48)
    context = CONTEXT[..., :20]
    out = _apply(decoder, variables, context=context, context_mask=None)
    everything = _apply(decoder, variables, context=context, context_mask=np.ones((3, 7)))
    np.testing.assert_allclose(out["logits"], everything["logits"], atol=1e-5)


def test_dropout_is_active_in_training_only_and_rematerialisation_changes_nothing(fill):
    plain = causal_decoder.Decoder(**TINY, cross_attention=True)
    variables = fill(_shapes(plain))

    def value(decoder, seed):
        def loss(v):
            rngs = {"dropout": jax.random.key(seed)}
            out = decoder.apply(v, IDS, MASK, CONTEXT, CONTEXT_MASK, train=True, rngs=rngs)
            return jnp.mean(out["logits"] ** 2)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    first = value(plain, 0)
    for a, b in zip(first, value(plain.clone(remat="dots"), 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert abs(first[0] - value(plain, 1)[0]) > 1e-5
    assert abs(first[0] - jnp.mean(_apply(plain, variables)["logits"] ** 2)) > 1e-5


def test_bfloat16_stays_close_to_float32_with_float32_parameters(fill):
    decoder = causal_decoder.Decoder(**TINY, cross_attention=True, dtype=jnp.bfloat16)
    variables = fill(_shapes(decoder))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = _apply(decoder, variables)
    assert out["tokens"].dtype == out["logits"].dtype == jnp.bfloat16
    expected = _apply(decoder.clone(dtype=jnp.float32), variables)
    error = jnp.abs(out["tokens"].astype(jnp.float32) - expected["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15


def test_unusable_inputs_are_refused():
    with pytest.raises(UserError, match="12 tokens is longer than the 8 positions"):
        _shapes(causal_decoder.Decoder(**{**TINY, "max_positions": 8}))
    decoder = causal_decoder.Decoder(**TINY)
    with pytest.raises(UserError, match="cannot look at it; set cross_attention=True"):
        decoder.init(jax.random.key(0), IDS, MASK, CONTEXT)
    with pytest.raises(UserError, match="needs a context"):
        decoder.clone(cross_attention=True).init(jax.random.key(0), IDS, MASK)
