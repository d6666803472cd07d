"""Without these, SigLIP text weights could load and compute something else, or mask padding by mistake."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import siglip_text

TINY = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96, "vocab_size": 60, "max_positions": 12}
LENGTHS = np.array([9, 12, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(5, 60, (3, 12)).astype(np.int32)
IDS[MASK == 0] = 1

PARAMETERS = {
    # With those of `vit.VARIANTS` and two scalars they are the 203,155,970, 652,150,786 and 877,960,498 of
    # google/siglip-base-patch16-224, -large-patch16-256 and -so400m-patch14-384; the test variant by hand:
    # 512*32 + 64*32 + 2*12_704 + 64 + 32*32 + 32.
    "test": 44_960,
    "siglip-B/16": 110_271_744,
    "siglip-L/16": 336_194_560,
    "siglip-So400m/14": 449_734_896,
}


def _shapes(encoder):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), IDS, MASK))


def _apply(encoder, variables, ids=IDS, mask=MASK):
    return jax.jit(lambda v: encoder.apply(v, ids, mask))(variables)


def _model(randomise, **options):
    from transformers import SiglipTextConfig, SiglipTextModel

    config = SiglipTextConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=12,
        bos_token_id=2,
        eos_token_id=1,
        attn_implementation="eager",
        **options,
    )
    return randomise(SiglipTextModel(config))


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(siglip_text.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(siglip_text.Encoder(**siglip_text.VARIANTS[name]))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("head", [None, 20])
def test_tower_and_each_block_equal_transformers_siglip_text_model(randomise, from_torch, head):
    import torch

    theirs = _model(randomise, projection_size=head or 48)
    ours = siglip_text.Encoder(**TINY, head_dim=head, last_attention=True)
    variables = from_torch(theirs, _shapes(ours), siglip_text.TORCH_RULES)
    with torch.no_grad():
        # Without a mask, as transformers' processor of SigLIP leaves it out.
        ids = torch.from_numpy(IDS).long()
        expected = theirs(ids, output_hidden_states=True, output_attentions=True)
    out = _apply(ours, variables)
    assert len(out["hidden"]) == 3
    for i in (0, 1):
        np.testing.assert_allclose(out["hidden"][i], expected.hidden_states[i], atol=1e-5)
    np.testing.assert_allclose(out["tokens"], expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    np.testing.assert_allclose(out["attention"], expected.attentions[-1], atol=1e-5)


def test_gradients_equal_transformers_siglip_text_model(
    randomise, from_torch, assert_same_gradient
):
    import torch

    theirs = _model(randomise).train()
    ours = siglip_text.Encoder(**TINY)
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, siglip_text.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32)
    out = theirs(torch.from_numpy(IDS).long())
    loss = (out.pooler_output * torch.from_numpy(weight)).sum()
    loss = loss + out.last_hidden_state.pow(3).sum()
    loss.backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, siglip_text.TORCH_RULES)

    def objective(v):
        y = ours.apply(v, IDS, MASK, train=True)
        return jnp.sum(y["pooled"] * weight) + jnp.sum(y["tokens"] ** 3)

    value, grads = jax.jit(jax.value_and_grad(objective))(variables)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_same_gradient(grads, expected)


def test_padding_is_seen_and_the_mask_is_not_read(fill):
    encoder = siglip_text.Encoder(**TINY)
    variables = fill(_shapes(encoder))
    out = _apply(encoder, variables)
    for a, b in zip(
        jax.tree.leaves(out),
        jax.tree.leaves(_apply(encoder, variables, mask=np.ones_like(MASK))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    padding = IDS.copy()
    padding[MASK == 0] = 3
    changed = _apply(encoder, variables, ids=padding)["pooled"]
    difference = np.abs(changed - out["pooled"]).max(-1)
    assert difference[[0, 2]].min() > 1e-3
    assert difference[1] < 1e-6  # this row has no padding
    first = IDS.copy()
    first[:, 0] = 7
    tokens = _apply(encoder, variables, ids=first)["tokens"]
    assert np.abs(tokens - out["tokens"]).max(-1).min() > 1e-5


def test_dropout_is_active_in_training_only_and_rematerialisation_changes_nothing(fill):
    plain = siglip_text.Encoder(**TINY, dropout=0.2)
    variables = fill(_shapes(plain))

    def value(encoder, seed):
        def loss(v):
            out = encoder.apply(v, IDS, MASK, train=True, rngs={"dropout": jax.random.key(seed)})
            return jnp.sum(out["pooled"] ** 2)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))

    first = value(plain, 0)
    for a, b in zip(first, value(plain.clone(remat="dots"), 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert abs(first[0] - value(plain, 1)[0]) > 1e-3
    assert abs(first[0] - jnp.sum(_apply(plain, variables)["pooled"] ** 2)) > 1e-3


def test_bfloat16_stays_close_to_float32_with_float32_parameters(fill):
    encoder = siglip_text.Encoder(**TINY, dtype=jnp.bfloat16)
    variables = fill(_shapes(encoder))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = _apply(encoder, variables)
    assert out["tokens"].dtype == out["pooled"].dtype == jnp.bfloat16
    expected = _apply(siglip_text.Encoder(**TINY), variables)
    error = jnp.abs(out["tokens"].astype(jnp.float32) - expected["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15


def test_a_text_longer_than_the_position_table_is_refused():
    with pytest.raises(UserError, match="12 tokens is longer than the 8 positions"):
        _shapes(siglip_text.Encoder(**{**TINY, "max_positions": 8}))
