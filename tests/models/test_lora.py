"""Without these, adapters could change the wrong kernels, start away from the weights or fail to learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, lora, resnet, vit

REGEX = r"block_\d+/attention/(query|value)"
IDS = np.random.default_rng(0).integers(5, 60, (3, 6)).astype(np.int32)
MASK = (np.arange(6) < np.array([6, 4, 2])[:, None]).astype(np.int32)
ENCODER = bert.Encoder(
    width=16, depth=2, heads=2, mlp_dim=32, vocab_size=60, max_positions=8, dropout=0.0
)


@pytest.fixture
def params(fill):
    return fill(jax.eval_shape(lambda: ENCODER.init(jax.random.key(0), IDS, MASK)))["params"]


def _pooled(params):
    return ENCODER.apply({"params": params}, IDS, MASK)["pooled"]


def _trained(adapters):
    """Adapters with random values everywhere."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), adapters)


def test_new_adapters_sit_on_the_chosen_kernels_and_change_nothing(params):
    adapters = lora.init(jax.random.key(0), params, REGEX, rank=4)
    assert set(adapters) == {
        f"block_{i}/attention/{name}/kernel" for i in (0, 1) for name in ("query", "value")
    }
    for adapter in adapters.values():
        assert adapter["a"].shape == (16, 4)
        assert adapter["b"].shape == (4, 16)
        assert 0 < np.abs(adapter["a"]).max() <= 0.25
        np.testing.assert_array_equal(adapter["b"], 0)
    first, *others = (np.asarray(adapter["a"]) for adapter in adapters.values())
    assert all(np.abs(first - other).max() > 0.01 for other in others)
    merged = lora.merge(params, adapters, 2.0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    # On shapes too, as the training state is planned with jax.eval_shape.
    shapes = jax.eval_shape(lambda p: lora.init(jax.random.key(0), p, REGEX, rank=4), params)
    assert jax.tree.map(jnp.shape, adapters) == jax.tree.map(lambda s: s.shape, shapes)


def test_initial_values_are_those_of_the_released_code():
    import math

    import torch

    wide = {"fc": {"kernel": np.zeros((400, 100), np.float32)}}
    a = np.asarray(lora.init(jax.random.key(1), wide, "fc", rank=50)["fc/kernel"]["a"])
    theirs = torch.empty(50, 400)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    np.testing.assert_allclose(a.std(), theirs.std(), rtol=0.02)
    np.testing.assert_allclose(np.abs(a).max(), theirs.abs().max(), rtol=0.01)


def test_merged_kernels_equal_the_explicit_sum_and_all_other_leaves_stay(params):
    adapters = _trained(lora.init(jax.random.key(0), params, REGEX, rank=3))
    merged = jax.jit(lora.merge, static_argnums=2)(params, adapters, 0.5)
    changed = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
        name = "/".join(key.key for key in path)
        expected = params
        for key in path:
            expected = expected[key.key]
        if name in adapters:
            changed += 1
            expected = expected + 0.5 * adapters[name]["a"] @ adapters[name]["b"]
            np.testing.assert_allclose(leaf, expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(leaf, expected)
    assert changed == len(adapters) == 4
    assert np.abs(_pooled(merged) - _pooled(params)).max() > 1e-3


def test_output_and_gradients_follow_the_closed_form_of_one_layer():
    rng = np.random.default_rng(0)
    w, a, b, x, g = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((6, 5), (6, 2), (2, 5), (7, 6), (7, 5))
    )
    adapters = {"fc/kernel": {"a": a, "b": b}}

    def loss(adapters):
        merged = lora.merge({"fc": {"kernel": w}}, adapters, 4.0)
        y = x @ merged["fc"]["kernel"]
        return jnp.sum(y * g), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(adapters)
    np.testing.assert_allclose(y, x @ w + 4.0 * (x @ a) @ b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads["fc/kernel"]["a"], 4.0 * x.T @ g @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads["fc/kernel"]["b"], 4.0 * (x @ a).T @ g, rtol=1e-4, atol=1e-4)


def test_training_the_adapters_alone_lowers_the_loss_and_leaves_the_weights(params):
    before = jax.tree.map(np.copy, params)
    target = np.random.default_rng(5).normal(size=(3, 16)).astype(np.float32)
    adapters = lora.init(jax.random.key(0), params, REGEX, rank=4)
    tx = optax.adam(0.02)

    def loss(adapters):
        return jnp.mean((_pooled(lora.merge(params, adapters, 2.0)) - target) ** 2)

    @jax.jit
    def step(adapters, state):
        value, grads = jax.value_and_grad(loss)(adapters)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(adapters, updates), state, value, grads

    state, values = tx.init(adapters), []
    for i in range(30):
        adapters, state, value, grads = step(adapters, state)
        values.append(float(value))
        if i == 0:  # b is zero, so only b moves at first
            assert all(np.abs(grad["b"]).max() > 0 for grad in grads.values())
            assert all(np.abs(grad["a"]).max() == 0 for grad in grads.values())
    assert values[-1] < 0.8 * values[0], values
    assert all(np.abs(adapter["a"]).max() > 0 for adapter in grads.values())
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_tower_with_convolutions_takes_adapters_on_its_linear_layers_only():
    image = jnp.zeros((1, 16, 16, 3))
    encoder = vit.Encoder(**vit.VARIANTS["test/8"])
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image))["params"]
    assert len(lora.targets(params, "mlp/fc[12]")) == 4
    with pytest.raises(UserError, match=r"matrices only.*patch_embed/kernel \(8, 8, 3, 32\)"):
        lora.targets(params, "kernel")
    encoder = resnet.Encoder(**resnet.VARIANTS["test"])
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image))["params"]
    with pytest.raises(UserError, match=r"layer1_0/conv1/kernel"):
        lora.init(jax.random.key(0), params, "layer1_0", rank=2)


def test_settings_that_do_not_fit_are_refused(params):
    key = jax.random.key(0)
    for regex in ("block_7/attention", "bias", "embedding", "norm"):
        with pytest.raises(UserError, match="matches no kernel; paths look like block_0/attention"):
            lora.init(key, params, regex, rank=4)
    for rank in (0, 17):
        with pytest.raises(UserError, match=r"rank=.* block_0/attention/.*\(16, 16\).*1 to 16"):
            lora.init(key, params, REGEX, rank=rank)
    adapters = lora.init(key, params, REGEX, rank=4)
    with pytest.raises(UserError, match=r"block_1/.* which is missing here"):
        lora.merge({k: v for k, v in params.items() if k != "block_1"}, adapters, 1.0)
    other = {"block_0": {"attention": {"query": {"kernel": np.zeros((16, 8))}}}}
    with pytest.raises(UserError, match=r"shape \(16, 16\), which is \(16, 8\) here"):
        lora.merge(other, adapters, 1.0)
