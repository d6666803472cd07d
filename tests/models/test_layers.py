"""Without these, a hand-written gradient or an attention kernel could differ from the textbook formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers

RNG = np.random.default_rng(0)


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_layer_norm_equals_torch_in_value_and_gradient():
    import torch

    x, scale, bias, weight = _normal(3, 5, 24), _normal(24), _normal(24), _normal(3, 5, 24)
    x[0] += 300  # a large mean is where one-pass variance fails
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, scale, bias)]
    theirs = torch.nn.functional.layer_norm(tensors[0], (24,), tensors[1], tensors[2], 1e-12)
    (theirs * torch.from_numpy(weight)).sum().backward()
    ours = layers.layer_norm(x, scale, bias, 1e-12)
    np.testing.assert_allclose(ours, theirs.detach(), atol=2e-4)
    np.testing.assert_allclose(ours[1:], theirs.detach()[1:], atol=1e-5)
    grads = jax.grad(lambda *a: jnp.sum(layers.layer_norm(*a, 1e-12) * weight), (0, 1, 2))(
        x, scale, bias
    )
    for ours_i, theirs_i in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(ours_i, theirs_i.grad, atol=1e-4, rtol=1e-4)


def test_gelu_is_the_exact_one_in_value_and_gradient():
    x = np.concatenate([np.linspace(-8, 8, 161), [0.0]]).astype(np.float32)
    reference = lambda v: jax.nn.gelu(v, approximate=False)  # noqa: E731
    np.testing.assert_allclose(layers.gelu(x), reference(x), atol=1e-6)
    ours, expected = (jax.vmap(jax.grad(f))(x) for f in (layers.gelu, reference))
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert layers.gelu(jnp.zeros(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_tanh_gelu_is_the_published_formula():
    x = np.linspace(-6, 6, 121).astype(np.float32)
    expected = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(layers.activation("gelu_tanh")(x), expected, atol=1e-6)
    assert np.abs(expected - layers.gelu(x)).max() > 1e-4


def test_masked_softmax_has_the_gradient_of_plain_softmax():
    logits, weight = _normal(4, 6), _normal(4, 6)
    mask = RNG.random((4, 6)) < 0.7
    mask[:, 0] = True

    def plain(x):
        return jnp.sum(jax.nn.softmax(jnp.where(mask, x, -1e30)) * weight)

    def ours(x):
        return jnp.sum(layers.masked_softmax(x, mask, jnp.float32) * weight)

    np.testing.assert_allclose(ours(logits), plain(logits), atol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(plain)(logits), atol=1e-6)
    empty = layers.masked_softmax(logits, jnp.zeros((4, 6), bool), jnp.float32)
    np.testing.assert_array_equal(empty, 0)


def _attention_by_hand(q, k, v, mask):
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, v), weights


@pytest.mark.parametrize("implementation", ["auto", "einsum", "xla"])
def test_attention_equals_the_formula_and_every_implementation_agrees(implementation):
    q, k, v = _normal(2, 5, 3, 8), _normal(2, 7, 3, 8), _normal(2, 7, 3, 8)
    mask = np.ones((2, 7), np.int32)
    mask[1, 4:] = 0
    expected, probs = _attention_by_hand(q, k, v, mask[:, None, None, :] == 1)
    out, none = layers.attention(q, k, v, mask, implementation=implementation)
    assert none is None
    np.testing.assert_allclose(out, expected, atol=1e-5)
    out, weights = layers.attention(q, k, v, mask, implementation=implementation, need_probs=True)
    np.testing.assert_allclose(weights, probs, atol=1e-6)

    def loss(*args, form):
        return jnp.sum(layers.attention(*args, mask, implementation=form)[0] ** 2)

    ours = jax.grad(lambda *a: loss(*a, form=implementation), (0, 1, 2))(q, k, v)
    reference = jax.grad(lambda *a: loss(*a, form="einsum"), (0, 1, 2))(q, k, v)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_attention_to_nothing_is_zero_with_a_finite_gradient(implementation):
    q, k, v = _normal(2, 4, 2, 8), _normal(2, 4, 2, 8), _normal(2, 4, 2, 8)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    out, _ = layers.attention(q, k, v, mask, implementation=implementation)
    np.testing.assert_array_equal(out[1], 0)
    grads = jax.grad(
        lambda *a: jnp.sum(layers.attention(*a, mask, implementation=implementation)[0] ** 2),
        (0, 1, 2),
    )(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_array_equal(grads[2][0, 2:], 0)


def test_dropout_drops_the_right_share_independently_over_positions_and_keys():
    x = jnp.ones((64, 8, 96))
    one, two = (np.asarray(layers.dropout(x, 0.3, jax.random.key(i))) for i in range(2))
    np.testing.assert_allclose(np.unique(one), [0, 1 / 0.7], rtol=1e-6)
    kept, other = one > 0, two > 0
    count = kept.size
    spread = 4 * np.sqrt(0.7 * 0.3 / count)  # four standard deviations
    assert abs(kept.mean() - 0.7) < spread
    for shifted in (other, np.roll(kept, 1, 2), np.roll(kept, 1, 1), np.roll(kept, 1, 0)):
        assert abs((kept & shifted).mean() - 0.49) < 4 * np.sqrt(0.49 * 0.51 / count) + spread
    for axis in range(3):  # no row, column or plane is favoured
        share = kept.mean(tuple(a for a in range(3) if a != axis))
        limit = 5 * np.sqrt(0.21 * kept.shape[axis] / count)
        assert np.abs(share - 0.7).max() < limit


def test_dropout_gradient_uses_the_mask_of_the_forward_pass():
    x, weight, key = _normal(5, 7), _normal(5, 7), jax.random.key(3)
    mask = layers.dropout(jnp.ones((5, 7)), 0.4, key)
    grads = jax.grad(lambda v: jnp.sum(layers.dropout(v, 0.4, key) * weight))(x)
    np.testing.assert_allclose(grads, mask * weight, atol=1e-6)
    assert layers.dropout(jnp.ones((5, 7), jnp.bfloat16), 0.4, key).dtype == jnp.bfloat16


def test_dropout_of_rows_drops_whole_rows():
    y = layers.dropout(jnp.ones((2000, 2, 3)), 0.25, jax.random.key(0), rows_only=True)
    rows = np.unique(np.asarray(y).reshape(2000, -1), axis=0)
    np.testing.assert_allclose(rows, [[0] * 6, [4 / 3] * 6], rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 0.05


def test_dropout_does_not_depend_on_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    x = jnp.ones((16, 5, 4))
    run = jax.jit(lambda v: layers.dropout(v, 0.5, jax.random.key(1)))
    np.testing.assert_array_equal(run(jax.device_put(x, sharding)), run(x))


def test_attention_dropout_keeps_the_expectation():
    q, k = np.zeros((64, 8, 4, 8), np.float32), _normal(64, 8, 4, 8)
    v = np.ones((64, 8, 4, 8), np.float32)
    out, _ = layers.attention(q, k, v, dropout_rate=0.3, dropout_rng=jax.random.key(0))
    assert abs(float(out.mean()) - 1) < 0.01
    assert float(out.std()) > 0.1


def test_full_masks_per_query_are_respected():
    q = _normal(1, 4, 2, 8)
    causal = np.tril(np.ones((1, 1, 4, 4), bool))
    out, _ = layers.attention(q, q, q, causal)
    changed = q.copy()
    changed[:, 3] = 9
    later, _ = layers.attention(changed, changed, changed, causal)
    np.testing.assert_array_equal(out[:, :3], later[:, :3])


def test_causal_mask_shows_real_tokens_up_to_the_position_itself():
    mask = layers.causal_mask(np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]]))
    assert mask.shape == (3, 1, 3, 3)
    expected = [
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
    ]
    np.testing.assert_array_equal(mask[:, 0], np.array(expected, bool))


def test_unknown_attention_implementation_is_refused():
    q = _normal(1, 2, 1, 8)
    with pytest.raises(UserError, match="einsum, xla or cudnn"):
        layers.attention(q, q, q, implementation="flash")


@pytest.mark.gpu
@pytest.mark.parametrize("length", [64, 65])
def test_cudnn_attention_equals_einsum(length):
    q, k, v = (jnp.asarray(_normal(2, length, 4, 64), jnp.bfloat16) for _ in range(3))
    mask = np.ones((2, length), np.int32)
    mask[1, 40:] = 0

    def run(form):
        def loss(*args):
            out, _ = layers.attention(*args, mask, implementation=form)
            return jnp.sum(out.astype(jnp.float32) ** 2), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    for a, b in zip(jax.tree.leaves(run("cudnn")), jax.tree.leaves(run("einsum")), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=0.05)


def test_l2_normalize_gives_unit_length_and_survives_a_zero_vector():
    x = _normal(3, 6)
    x[1] = 0
    y = layers.l2_normalize(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), [1, 0, 1], atol=1e-6)
    grads = jax.grad(lambda v: jnp.sum(layers.l2_normalize(v)))(x)
    assert np.isfinite(grads).all()


def test_batch_norm_equals_torch_in_training_and_evaluation():
    import torch

    theirs = torch.nn.BatchNorm1d(6)
    ours = layers.BatchNorm()
    variables = ours.init(jax.random.key(0), jnp.zeros((2, 6)), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)
    for _ in range(3):
        x = _normal(5, 6) * 2 + 1
        theirs.train()
        expected = theirs(torch.from_numpy(x))
        y, updates = ours.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **updates}
        np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], theirs.running_mean, atol=1e-6)
    theirs.eval()
    expected = theirs(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(ours.apply(variables, x, train=False), expected, atol=1e-5)


def test_frozen_batch_norm_neither_uses_nor_changes_the_batch():
    frozen = layers.BatchNorm(frozen=True)
    x = _normal(5, 6)
    variables = frozen.init(jax.random.key(0), x, train=True)
    y, updates = frozen.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x, atol=1e-4)
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], 0)
