"""Without these, BERT or RoBERTa weights could load and compute something else, or padding could leak in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, pooling

TINY = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96, "vocab_size": 60, "max_positions": 20}
LENGTHS = np.array([9, 12, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(5, 60, (3, 12)).astype(np.int32)

PARAMETERS = {
    # With pooler; those of BERT and RoBERTa are the published ones.
    "test": 47_072,
    "quickstart": 1_367_168,
    "tiny": 4_385_920,
    "mini6": 22_713_216,
    "base": 109_482_240,
    "base-cased": 108_310_272,
    "large": 335_141_888,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
}


def _shapes(encoder):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), IDS, MASK))


def _apply(encoder, variables, ids=IDS, mask=MASK, types=None):
    return jax.jit(lambda v: encoder.apply(v, ids, mask, token_type_ids=types))(variables)


def _bert_model(randomise, **options):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=20,
        attn_implementation="eager",
        **options,
    )
    return randomise(BertModel(config))


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(bert.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(bert.Encoder(**bert.VARIANTS[name]))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


def test_tower_and_each_block_equal_transformers_bert_model(randomise, from_torch):
    import torch

    theirs = _bert_model(randomise)
    ours = bert.Encoder(**TINY, last_attention=True)
    variables = from_torch(theirs, _shapes(ours), bert.TORCH_RULES)
    types = (np.arange(12) >= 4).astype(np.int32)[None].repeat(3, 0)
    with torch.no_grad():
        ids, mask, kinds = (torch.from_numpy(x).long() for x in (IDS, MASK, types))
        expected = theirs(
            ids, mask, token_type_ids=kinds, output_hidden_states=True, output_attentions=True
        )
    out = _apply(ours, variables, types=types)
    real = MASK.astype(bool)
    assert len(out["hidden"]) == 3
    for i, tolerance in enumerate((1e-5, 1e-5, 1e-4)):
        theirs_i = expected.hidden_states[i].numpy()[real]
        np.testing.assert_allclose(np.asarray(out["hidden"][i])[real], theirs_i, atol=tolerance)
    tokens = np.asarray(out["tokens"])[real]
    np.testing.assert_allclose(tokens, expected.last_hidden_state.numpy()[real], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    ours_row, theirs_row = out["attention"][0, :, :9], expected.attentions[-1][0, :, :9]
    np.testing.assert_allclose(ours_row, theirs_row, atol=1e-5)


def test_gradients_equal_transformers_bert_model(randomise, from_torch, assert_same_gradient):
    import torch

    theirs = _bert_model(randomise, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = theirs.train()
    ours = bert.Encoder(**TINY, dropout=0.0)
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, bert.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32)
    out = theirs(torch.from_numpy(IDS).long(), torch.from_numpy(MASK).long())
    real = torch.from_numpy(MASK).float()[..., None]
    loss = (out.pooler_output * torch.from_numpy(weight)).sum()
    loss = loss + (out.last_hidden_state.pow(3) * real).sum()
    loss.backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, bert.TORCH_RULES)

    def objective(v):
        y = ours.apply(v, IDS, MASK, train=True)
        return jnp.sum(y["pooled"] * weight) + jnp.sum(y["tokens"] ** 3 * MASK[..., None])

    value, grads = jax.jit(jax.value_and_grad(objective))(variables)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_same_gradient(grads, expected)


def test_roberta_positions_count_from_the_padding_index(randomise, from_torch):
    import torch
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=20,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        attn_implementation="eager",
    )
    theirs = randomise(RobertaModel(config))
    ours = bert.Encoder(
        **TINY, token_types=1, layer_norm_eps=1e-5, position_ids="roberta", padding_idx=1
    )
    variables = from_torch(theirs, _shapes(ours), bert.TORCH_RULES)
    ids = np.where(MASK == 1, IDS, 1)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), torch.from_numpy(MASK).long())
    out = _apply(ours, variables, ids=ids)
    real = MASK.astype(bool)
    tokens = np.asarray(out["tokens"])[real]
    np.testing.assert_allclose(tokens, expected.last_hidden_state.numpy()[real], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    with pytest.raises(UserError, match="12 tokens is longer than the 9 positions"):
        _shapes(ours.clone(max_positions=11))


@pytest.mark.parametrize("kind", ["pooler", "cls", "eos", "mean", "max", "attention"])
def test_padding_never_matters_and_each_pooling_is_what_it_says(kind, fill):
    encoder = bert.Encoder(**TINY, pooling=kind)
    variables = fill(_shapes(encoder))
    out = _apply(encoder, variables)
    noise = np.where(MASK == 1, IDS, (IDS + 17) % 60)
    changed = _apply(encoder, variables, ids=noise)
    real = MASK.astype(bool)
    np.testing.assert_array_equal(changed["pooled"], out["pooled"])
    np.testing.assert_array_equal(
        np.asarray(changed["tokens"])[real], np.asarray(out["tokens"])[real]
    )
    shorter = _apply(encoder, variables, ids=IDS[2:, :5], mask=MASK[2:, :5])
    np.testing.assert_allclose(shorter["pooled"][0], out["pooled"][2], atol=1e-5)

    states = np.asarray(out["tokens"][2, :5])
    expected = {
        "cls": states[0],
        "eos": states[4],
        "mean": states.mean(0),
        "max": states.max(0),
    }.get(kind)
    if expected is not None:
        np.testing.assert_allclose(out["pooled"][2], expected, atol=1e-5)


def test_attention_pooling_learns_one_query_over_the_tokens(fill):
    encoder = bert.Encoder(**TINY, pooling="attention")
    variables = fill(_shapes(encoder))
    plain = bert.Encoder(**TINY, pooling="cls")
    own = variables["params"]["attention_pool"]
    rest = {k: v for k, v in variables["params"].items() if k != "attention_pool"}
    assert jax.tree.structure(rest) == jax.tree.structure(_shapes(plain)["params"])
    assert own["query"].shape == (1, 1, 48)
    tokens = _apply(plain, {"params": rest})["tokens"]
    expected = pooling.AttentionPool(heads=4).apply({"params": own}, tokens, MASK)
    np.testing.assert_allclose(_apply(encoder, variables)["pooled"], expected, atol=1e-5)


def test_a_row_without_any_token_gives_finite_numbers_and_gradients(fill):
    encoder = bert.Encoder(**TINY, pooling="mean")
    variables = fill(_shapes(encoder))
    mask = MASK.copy()
    mask[1] = 0

    def loss(v):
        out = encoder.apply(v, IDS, mask)
        return jnp.sum(out["pooled"] ** 2) + jnp.sum(out["tokens"] ** 2), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))
    np.testing.assert_array_equal(out["pooled"][1], 0)


def test_dropout_is_active_in_training_only_and_follows_its_key(fill):
    encoder = bert.Encoder(**TINY)
    variables = fill(_shapes(encoder))

    @jax.jit
    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return encoder.apply(variables, IDS, MASK, train=True, rngs=rngs)["pooled"]

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    assert np.abs(run(0) - _apply(encoder, variables)["pooled"]).max() > 1e-3


def test_rematerialisation_changes_neither_value_nor_gradient(fill):
    variables = fill(_shapes(bert.Encoder(**TINY)))

    def value(remat):
        encoder = bert.Encoder(**TINY, remat=remat)

        def loss(v):
            out = encoder.apply(v, IDS, MASK, train=True, rngs={"dropout": jax.random.key(1)})
            return jnp.sum(out["pooled"] ** 2)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    for a, b in zip(value("none"), value("dots"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close_to_float32_with_float32_parameters(fill):
    encoder = bert.Encoder(**TINY, dtype=jnp.bfloat16)
    variables = fill(_shapes(encoder))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = _apply(encoder, variables)
    assert out["tokens"].dtype == jnp.bfloat16
    expected = _apply(bert.Encoder(**TINY), variables)
    error = jnp.abs(out["tokens"].astype(jnp.float32) - expected["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"pooling": "last"}, "choose pooler, cls, eos, mean, max or attention"),
        ({"position_ids": "rotary"}, "absolute or roberta"),
        ({"max_positions": 8}, "12 tokens is longer than the 8 positions"),
    ],
)
def test_unusable_settings_are_refused(field, message):
    with pytest.raises(UserError, match=message):
        _shapes(bert.Encoder(**{**TINY, **field}))
