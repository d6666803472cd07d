"""Without these, CLIP text weights could load and compute something else, or read the wrong token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import clip_text

TINY = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96, "vocab_size": 60, "max_positions": 20}
EOS = 59
LENGTHS = np.array([9, 12, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(5, 58, (3, 12)).astype(np.int32)
IDS[np.arange(3), LENGTHS - 1] = EOS
IDS[MASK == 0] = EOS  # CLIP's tokenizer in transformers pads with the end-of-text token

PARAMETERS = {
    "quickstart": 6_730_880,  # ours
    # Of transformers.CLIPTextModel with OpenAI's weights (63.2 M and 123.1 M in arXiv 2103.00020), that is
    # without the text projection; the test variant by hand: 512*32 + 128*32 + 2*12_704 + 64.
    "test": 45_952,
    "clip-B/16": 63_165_952,
    "clip-B/32": 63_165_952,
    "clip-L/14": 123_060_480,
}


def _shapes(encoder):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), IDS, MASK))


def _apply(encoder, variables, ids=IDS, mask=MASK):
    return jax.jit(lambda v: encoder.apply(v, ids, mask))(variables)


def _model(randomise, **options):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=20,
        attn_implementation="eager",
        **{"eos_token_id": EOS, "bos_token_id": 58, "pad_token_id": EOS, **options},
    )
    return randomise(CLIPTextModel(config))


def test_every_variant_has_the_published_number_of_parameters():
    assert set(PARAMETERS) == set(clip_text.VARIANTS)
    for name, expected in PARAMETERS.items():
        shapes = _shapes(clip_text.Encoder(**clip_text.VARIANTS[name]))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_tower_and_each_block_equal_transformers_clip_text_model(randomise, from_torch, activation):
    import torch

    theirs = _model(randomise, hidden_act=activation)
    ours = clip_text.Encoder(**TINY, eos_token_id=EOS, activation=activation, last_attention=True)
    variables = from_torch(theirs, _shapes(ours), clip_text.TORCH_RULES)
    with torch.no_grad():
        ids, mask = (torch.from_numpy(x).long() for x in (IDS, MASK))
        expected = theirs(ids, mask, output_hidden_states=True, output_attentions=True)
    out = _apply(ours, variables)
    real = MASK.astype(bool)
    assert len(out["hidden"]) == 3
    for i in (0, 1):
        theirs_i = expected.hidden_states[i].numpy()[real]
        np.testing.assert_allclose(np.asarray(out["hidden"][i])[real], theirs_i, atol=1e-5)
    tokens = np.asarray(out["tokens"])[real]
    np.testing.assert_allclose(tokens, expected.last_hidden_state.numpy()[real], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    ours_row, theirs_row = out["attention"][0, :, :9], expected.attentions[-1][0, :, :9]
    np.testing.assert_allclose(ours_row, theirs_row, atol=1e-5)


@pytest.mark.slow
def test_full_size_clip_b32_equals_transformers_clip_text_model(randomise, from_torch):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    theirs = randomise(CLIPTextModel(CLIPTextConfig(attn_implementation="eager")))
    ours = clip_text.Encoder(**clip_text.VARIANTS["clip-B/32"])
    variables = from_torch(theirs, _shapes(ours), clip_text.TORCH_RULES)
    ids = np.random.default_rng(0).integers(0, 49406, (2, 77)).astype(np.int32)
    ids[:, 70:] = 49407
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long())
    out = _apply(ours, variables, ids, np.ones((2, 77)))
    np.testing.assert_allclose(out["tokens"], expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)


@pytest.mark.parametrize("legacy", [True, False])
def test_end_of_text_is_found_by_both_rules_of_transformers(randomise, from_torch, legacy):
    import torch

    # Legacy configs say eos_token_id = 2 and mean the highest id; the other rule must not take a higher id.
    ids = IDS.copy()
    ids[0, 3], ids[1, 4], ids[1, 7] = 59, 30, 30
    ids[0, 8], ids[2, 4] = 30, 30
    theirs = _model(randomise, eos_token_id=2 if legacy else 30)
    ours = clip_text.Encoder(**TINY, eos_token_id=None if legacy else 30)
    variables = from_torch(theirs, _shapes(ours), clip_text.TORCH_RULES)
    with torch.no_grad():
        mask = torch.ones(3, 12, dtype=torch.long)
        expected = theirs(torch.from_numpy(ids).long(), mask)
    out = _apply(ours, variables, ids, np.ones_like(MASK))
    np.testing.assert_allclose(out["pooled"], expected.pooler_output, atol=1e-4)
    row, place = (0, 3) if legacy else (1, 4)
    np.testing.assert_array_equal(out["pooled"][row], out["tokens"][row, place])


def test_gradients_equal_transformers_clip_text_model(randomise, from_torch, assert_same_gradient):
    import torch

    theirs = _model(randomise).train()
    ours = clip_text.Encoder(**TINY, eos_token_id=EOS)
    shapes = _shapes(ours)
    variables = from_torch(theirs, shapes, clip_text.TORCH_RULES)
    weight = np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32)
    out = theirs(torch.from_numpy(IDS).long(), torch.from_numpy(MASK).long())
    real = torch.from_numpy(MASK).float()[..., None]
    loss = (out.pooler_output * torch.from_numpy(weight)).sum()
    loss = loss + (out.last_hidden_state.pow(3) * real).sum()
    loss.backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    expected = from_torch(theirs, shapes, clip_text.TORCH_RULES)

    def objective(v):
        y = ours.apply(v, IDS, MASK, train=True)
        return jnp.sum(y["pooled"] * weight) + jnp.sum(y["tokens"] ** 3 * MASK[..., None])

    value, grads = jax.jit(jax.value_and_grad(objective))(variables)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_same_gradient(grads, expected)


def _openai_module():
    """The layers whose names and shapes OpenAI's checkpoints have, random, and their computation."""
    import torch

    torch.manual_seed(0)
    block = torch.nn.ModuleDict(
        {
            "attn": torch.nn.MultiheadAttention(48, 4),
            "ln_1": torch.nn.LayerNorm(48),
            "ln_2": torch.nn.LayerNorm(48),
            "mlp": torch.nn.ModuleDict(
                {"c_fc": torch.nn.Linear(48, 96), "c_proj": torch.nn.Linear(96, 48)}
            ),
        }
    )
    model = torch.nn.Module()
    model.token_embedding = torch.nn.Embedding(60, 48)
    model.positional_embedding = torch.nn.Parameter(torch.randn(20, 48))
    model.transformer = torch.nn.Module()
    model.transformer.resblocks = torch.nn.ModuleList([block])
    model.ln_final = torch.nn.LayerNorm(48)

    def forward(ids):
        x = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
        x = x.transpose(0, 1)  # [L, B, D], as MultiheadAttention wants it
        future = torch.full((len(x), len(x)), float("-inf")).triu(1)
        y = block["ln_1"](x)
        x = x + block["attn"](y, y, y, need_weights=False, attn_mask=future)[0]
        y = block["mlp"]["c_fc"](block["ln_2"](x))
        x = x + block["mlp"]["c_proj"](y * torch.sigmoid(1.702 * y))
        return model.ln_final(x).transpose(0, 1)

    return model, forward


def test_openai_names_with_fused_projections_load_export_and_compute_the_same(randomise):
    import torch

    model, forward = _openai_module()
    randomise(model)
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    encoder = clip_text.Encoder(**{**TINY, "depth": 1})
    shapes = _shapes(encoder)["params"]
    params = keys.from_torch(tensors, shapes, clip_text.OPENAI_RULES)
    with torch.no_grad():
        expected = forward(torch.from_numpy(IDS).long()).numpy()
    out = _apply(encoder, {"params": params})
    real = MASK.astype(bool)
    np.testing.assert_allclose(np.asarray(out["tokens"])[real], expected[real], atol=1e-4)
    np.testing.assert_allclose(out["pooled"], expected[np.arange(3), IDS.argmax(1)], atol=1e-4)
    back = keys.to_torch(params, clip_text.OPENAI_RULES)
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.parametrize("eos", [None, EOS])
def test_a_token_sees_neither_the_future_nor_padding(eos, fill):
    encoder = clip_text.Encoder(**TINY, eos_token_id=eos)
    variables = fill(_shapes(encoder))
    out = _apply(encoder, variables)
    noise = np.where(MASK == 1, IDS, (IDS + 17) % 60)
    changed = _apply(encoder, variables, ids=noise)
    np.testing.assert_array_equal(changed["pooled"], out["pooled"])
    later = IDS.copy()
    later[:, 4] = 7
    changed = _apply(encoder, variables, ids=later)
    np.testing.assert_array_equal(changed["tokens"][:, :4], out["tokens"][:, :4])
    assert np.abs(changed["tokens"][1, 4:] - out["tokens"][1, 4:]).max(-1).min() > 1e-4
    shorter = _apply(encoder, variables, ids=IDS[2:, :5], mask=MASK[2:, :5])
    np.testing.assert_allclose(shorter["pooled"][0], out["pooled"][2], atol=1e-5)


def test_a_text_cut_off_before_its_end_is_read_at_its_last_token(fill):
    encoder = clip_text.Encoder(**TINY, eos_token_id=EOS)
    variables = fill(_shapes(encoder))
    ids = np.where(IDS == EOS, 7, IDS)
    mask = MASK.copy()
    mask[1] = 0
    out = _apply(encoder, variables, ids, mask)
    np.testing.assert_array_equal(out["pooled"][0], out["tokens"][0, 8])
    np.testing.assert_array_equal(out["pooled"][2], out["tokens"][2, 4])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))


def test_dropout_is_active_in_training_only_and_rematerialisation_changes_nothing(fill):
    plain = clip_text.Encoder(**TINY, dropout=0.2)
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
    encoder = clip_text.Encoder(**TINY, dtype=jnp.bfloat16)
    variables = fill(_shapes(encoder))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = _apply(encoder, variables)
    assert out["tokens"].dtype == out["pooled"].dtype == jnp.bfloat16
    expected = _apply(clip_text.Encoder(**TINY), variables)
    error = jnp.abs(out["tokens"].astype(jnp.float32) - expected["tokens"])
    assert error.mean() < 0.02
    assert error.max() < 0.15


def test_a_text_longer_than_the_position_table_is_refused():
    with pytest.raises(UserError, match="12 tokens is longer than the 8 positions"):
        _shapes(clip_text.Encoder(**{**TINY, "max_positions": 8}))
