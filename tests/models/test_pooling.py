"""Without these, word vectors could mix in the pieces of other words, special tokens or padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import pooling


def test_merged_words_and_layer_sums_equal_the_released_gloria_code(reference_dir):
    reference = np.load(reference_dir / "gloria_aggregate_tokens.npz")
    pieces, out = reference["embeddings"], reference["out"]  # [B, layers, L, D]
    # GLoRIA keeps [CLS] at 0 and [SEP] after the last word: here they count as words.
    word_ids = np.array([[0, 1, 2, 2, 2, 3, -1, -1], [0, 1, 2, 3, 3, 3, 4, 5]])
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "no", "pneu", "##mo", "##thorax", "clear", "lungs"]
    words = [[vocabulary[i] for i in row] for row in reference["ids"]]
    assert words[0][:6] == ["[CLS]", "no", "pneu", "##mo", "##thorax", "[SEP]"]
    assert words[1] == ["[CLS]", "lungs", "clear", "pneu", "##mo", "##thorax", "no", "[SEP]"]
    for layer in range(pieces.shape[1]):
        merged, mask = pooling.merge_word_pieces(pieces[:, layer], word_ids)
        np.testing.assert_allclose(merged, out[:, layer], atol=1e-6)
    np.testing.assert_array_equal(mask.sum(1), [4, 6])
    hidden = [pieces[:, i] for i in range(pieces.shape[1])]
    summed = pooling.sum_last_layers(hidden, 2)
    merged, _ = pooling.merge_word_pieces(summed, word_ids)
    np.testing.assert_allclose(merged, out[:, -2:].sum(1), atol=1e-5)


def test_special_tokens_and_padding_are_left_out_of_words():
    tokens = jnp.arange(1.0, 13.0).reshape(2, 6, 1)
    word_ids = jnp.array([[-1, 0, 0, 1, -1, -1], [-1, 0, 1, 1, 1, -1]])
    words, mask = jax.jit(pooling.merge_word_pieces)(tokens, word_ids)
    np.testing.assert_array_equal(words[..., 0], [[5, 4, 0, 0, 0, 0], [8, 30, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    assert mask.dtype == jnp.float32
    grads = jax.grad(lambda t: jnp.sum(pooling.merge_word_pieces(t, word_ids)[0]))(tokens)
    np.testing.assert_array_equal(grads[..., 0], word_ids >= 0)


def test_masked_mean_and_max_see_real_tokens_only():
    tokens = np.array([[[1.0, -5], [3, -1], [100, 100]], [[1, 2], [3, 4], [5, 6]]], np.float32)
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(pooling.masked_mean(tokens, mask), [[2, -3], [0, 0]])
    np.testing.assert_allclose(pooling.masked_max(tokens, mask), [[3, -1], [0, 0]])
    half = pooling.masked_mean(jnp.asarray(tokens, jnp.bfloat16), mask)
    assert half.dtype == jnp.bfloat16


def test_more_layers_than_there_are_is_refused():
    hidden = [jnp.zeros((1, 2, 3))] * 3
    for count in (0, 4):
        with pytest.raises(UserError, match="choose 1 to 3"):
            pooling.sum_last_layers(hidden, count)


def test_the_end_of_a_text_is_never_padding():
    ids = np.array([[5, 9, 7, 9], [5, 7, 9, 8], [5, 6, 8, 9], [9, 9, 9, 9]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(pooling.last_position(mask), [3, 1, 2, 0])
    # Highest id: the first of equal ones. Given id: its first place, else the last real token.
    np.testing.assert_array_equal(pooling.eos_position(ids, mask, None), [1, 1, 2, 0])
    np.testing.assert_array_equal(pooling.eos_position(ids, mask, 9), [1, 1, 2, 0])
    np.testing.assert_array_equal(pooling.eos_position(ids, mask, 7), [2, 1, 2, 0])
    tokens = jnp.arange(24.0).reshape(4, 3, 2)
    taken = pooling.take_position(tokens, jnp.array([0, 2, 1, 1]))
    np.testing.assert_array_equal(taken, [[0, 1], [10, 11], [14, 15], [20, 21]])


def test_attention_pool_equals_pytorch_multihead_attention_of_one_query(fill):
    import torch

    tokens = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    mask = (np.arange(6) < np.array([6, 4, 0])[:, None]).astype(np.int32)
    pool = pooling.AttentionPool(heads=2)
    params = fill(jax.eval_shape(lambda: pool.init(jax.random.key(0), tokens, mask)))["params"]
    ours = np.asarray(pool.apply({"params": params}, tokens, mask))
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    own = params["attention"]
    with torch.no_grad():
        names = ("query", "key", "value")
        weight = np.concatenate([own[n]["kernel"].T for n in names])
        bias = np.concatenate([own[n]["bias"] for n in names])
        theirs.in_proj_weight.copy_(torch.from_numpy(weight))
        theirs.in_proj_bias.copy_(torch.from_numpy(bias))
        theirs.out_proj.weight.copy_(torch.from_numpy(own["out"]["kernel"].T.copy()))
        theirs.out_proj.bias.copy_(torch.from_numpy(own["out"]["bias"]))
        query = torch.from_numpy(params["query"]).expand(3, 1, 8)
        keys = torch.from_numpy(tokens)
        expected = theirs(query, keys, keys, key_padding_mask=torch.from_numpy(mask == 0))[0]
    np.testing.assert_allclose(ours[:2], expected[:2, 0].numpy(), atol=1e-5)
    # A row without tokens: no value, only the bias of the output layer.
    np.testing.assert_allclose(ours[2], own["out"]["bias"], atol=1e-6)


def test_attention_pool_starts_as_nearly_a_mean_and_its_query_learns():
    tokens = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    pool = pooling.AttentionPool(heads=2)
    params = pool.init(jax.random.key(0), tokens, mask)["params"]
    own = params["attention"]
    value = pooling.masked_mean(tokens, mask) @ own["value"]["kernel"]
    pooled = pool.apply({"params": params}, tokens, mask)
    np.testing.assert_allclose(pooled, value @ own["out"]["kernel"], atol=0.05)
    grads = jax.grad(lambda p: jnp.sum(pool.apply({"params": p}, tokens, mask) ** 2))(params)
    assert np.abs(grads["query"]).max() > 1e-3


def test_map_pooling_ignores_masked_tokens_and_reads_the_others(fill):
    pool = pooling.MapPool(heads=2, mlp_dim=16)
    tokens = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    variables = fill(jax.eval_shape(lambda: pool.init(jax.random.key(0), tokens, mask)))
    out = pool.apply(variables, tokens, mask)
    np.testing.assert_allclose(out[:1], pool.apply(variables, tokens[:1, :3]), atol=1e-5)
    changed = tokens + np.where(mask == 0, 9, 0)[..., None]
    np.testing.assert_array_equal(pool.apply(variables, changed, mask), out)
    assert np.abs(pool.apply(variables, tokens[:, ::2]) - out).max() > 1e-3


def test_sentences_are_pooled_one_by_one():
    tokens = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    ids = np.array([[-1, 0, 0, 1, 3, -1], [-1, -1, -1, -1, -1, -1]], np.int32)
    members = {0: [1, 2], 1: [3], 3: [4]}
    for method, reduce in (("mean", np.mean), ("max", np.max)):
        run = jax.jit(pooling.pool_sentences, static_argnums=(2, 3))
        states, mask = run(tokens, ids, 3, method)
        np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 0, 0]])
        for sentence in (0, 1):
            wanted = reduce(tokens[0, members[sentence]], axis=0)
            np.testing.assert_allclose(states[0, sentence], wanted, rtol=1e-6)
        np.testing.assert_array_equal(states[mask == 0], 0)
    with pytest.raises(UserError, match="choose mean or max"):
        pooling.pool_sentences(tokens, ids, 3, "sum")
