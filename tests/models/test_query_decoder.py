"""Without these, MedKLIP's or KAD's decoder weights could compute something else, or queries see padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys
from medvlp_jax.models import query_decoder
from medvlp_jax.models.query_decoder import QueryDecoder

SMALL = {"width": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(5, 48)).astype(np.float32)
CONTEXT = RNG.normal(size=(3, 7, 48)).astype(np.float32)
MASK = (np.arange(7) < np.array([7, 4, 6])[:, None]).astype(np.int32)

PARAMETERS = {
    # By hand, D wide and M in the feed-forward: depth * (8 (D^2 + D) + 2 D M + M + D + 6 D) + 2 D.
    "test": 25_728,
    "medklip": 4_214_272,
    "kad": 25_217_536,
    "unibrain": 25_217_536,
}


def shapes(decoder, queries=QUERIES, context=CONTEXT):
    return jax.eval_shape(lambda: decoder.init(jax.random.key(0), context, queries))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def torch_decoder():
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerDecoderLayer(
        48, 4, 96, dropout=0.0, batch_first=True, norm_first=True
    )
    decoder = torch.nn.TransformerDecoder(layer, 2, torch.nn.LayerNorm(48)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():  # as torch makes them, norms and biases are trivial
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return decoder


@pytest.fixture(scope="module")
def variables(torch_decoder):
    tensors = {k: v.detach().numpy() for k, v in torch_decoder.state_dict().items()}
    wanted = shapes(QueryDecoder(**SMALL))["params"]
    assert count(wanted) == sum(t.size for t in tensors.values())
    return {"params": keys.from_torch(tensors, wanted, query_decoder.TORCH_RULES)}


@pytest.mark.parametrize("masked", [False, True])
def test_same_as_torch(torch_decoder, variables, masked) -> None:
    import torch

    mask = MASK if masked else None
    out = QueryDecoder(**SMALL).apply(variables, CONTEXT, QUERIES, mask)
    with torch.no_grad():
        theirs = torch_decoder(
            torch.from_numpy(np.tile(QUERIES, (3, 1, 1))),
            torch.from_numpy(CONTEXT),
            memory_key_padding_mask=torch.from_numpy(MASK == 0) if masked else None,
        )
    np.testing.assert_allclose(out["states"], theirs.numpy(), atol=1e-5)


def test_same_gradient_as_torch(torch_decoder, variables) -> None:
    import torch

    def loss(context, queries):
        states = QueryDecoder(**SMALL).apply(variables, context, queries)["states"]
        return jnp.sum(states**2 * jnp.arange(48))

    ours = jax.jit(jax.grad(loss, argnums=(0, 1)))(CONTEXT, QUERIES)
    context, queries = (torch.from_numpy(x).requires_grad_() for x in (CONTEXT, QUERIES))
    states = torch_decoder(queries.expand(3, -1, -1), context)
    (states**2 * torch.arange(48)).sum().backward()
    for got, tensor in zip(ours, (context, queries), strict=True):
        wanted = tensor.grad.numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_attention_is_that_of_torch(torch_decoder, variables) -> None:
    import torch

    seen = []

    def keep(module, args, kwargs):
        kwargs.update(need_weights=True, average_attn_weights=False)
        return args, kwargs

    hooks = []
    for layer in torch_decoder.layers:
        attention = layer.multihead_attn
        hooks.append(attention.register_forward_pre_hook(keep, with_kwargs=True))
        hooks.append(attention.register_forward_hook(lambda m, a, out: seen.append(out[1])))
    with torch.no_grad():
        torch_decoder(torch.from_numpy(np.tile(QUERIES, (3, 1, 1))), torch.from_numpy(CONTEXT))
    for hook in hooks:
        hook.remove()
    out = QueryDecoder(**SMALL).apply(variables, CONTEXT, QUERIES, need_attention=True)
    assert out["attention"].shape == (3, 2, 4, 5, 7)
    np.testing.assert_allclose(out["attention"], torch.stack(seen, 1).numpy(), atol=1e-5)


def test_queries_of_each_row(variables) -> None:
    decoder = QueryDecoder(**SMALL)
    own = RNG.normal(size=(3, 5, 48)).astype(np.float32)
    out = decoder.apply(variables, CONTEXT, own)["states"]
    for row in range(3):
        alone = decoder.apply(variables, CONTEXT[row : row + 1], own[row])["states"]
        np.testing.assert_allclose(out[row], alone[0], atol=1e-5)


def test_padding_of_the_context_never_matters(variables) -> None:
    decoder = QueryDecoder(**SMALL)
    changed = np.where(MASK[..., None] == 1, CONTEXT, 50)
    first, second = (
        decoder.apply(variables, c, QUERIES, MASK, need_attention=True) for c in (CONTEXT, changed)
    )
    np.testing.assert_array_equal(first["states"], second["states"])
    np.testing.assert_array_equal(first["attention"][1, ..., 4:], 0)


@pytest.mark.parametrize("variant", sorted(PARAMETERS))
def test_number_of_parameters(variant) -> None:
    settings = query_decoder.VARIANTS[variant]
    width = settings["width"]
    context, queries = jnp.zeros((2, 7, width)), jnp.zeros((5, width))
    assert count(shapes(QueryDecoder(**settings), queries, context)) == PARAMETERS[variant]


def test_projections_and_learned_queries() -> None:
    """MedKLIP: ClinicalBERT's 768 to 256, ResNet-50's layer 3 of 1024 through 1024 to 256."""
    decoder = QueryDecoder(
        **query_decoder.VARIANTS["medklip"], project_queries=True, project_context=True
    )
    found = shapes(decoder, jnp.zeros((75, 768)), jnp.zeros((2, 196, 1024)))
    extra = 768 * 256 + 256 + 1024 * 1024 + 1024 + 1024 * 256 + 256
    assert count(found) == PARAMETERS["medklip"] + extra
    learned = QueryDecoder(**SMALL, learned=6)
    made = learned.init(jax.random.key(0), CONTEXT)
    assert made["params"]["queries"].shape == (6, 48)
    assert learned.apply(made, CONTEXT)["states"].shape == (3, 6, 48)


def test_shared_norm_of_the_inputs(variables) -> None:
    """KAD: scaling queries or tokens changes nothing, since both are normalised first."""
    decoder = QueryDecoder(**SMALL, norm_inputs=True)
    out = decoder.apply(variables, CONTEXT, QUERIES)["states"]
    scaled = decoder.apply(variables, 3 * CONTEXT, 3 * QUERIES)["states"]
    np.testing.assert_allclose(out, scaled, atol=1e-4)
    plain = QueryDecoder(**SMALL).apply(variables, CONTEXT, QUERIES)["states"]
    assert np.abs(out - plain).max() > 0.1


def test_dropout_only_in_training(variables) -> None:
    decoder = QueryDecoder(**SMALL)
    still = decoder.apply(variables, CONTEXT, QUERIES)["states"]
    rngs = {"dropout": jax.random.key(0)}
    moved = decoder.apply(variables, CONTEXT, QUERIES, train=True, rngs=rngs)["states"]
    assert np.abs(still - moved).max() > 0.01


def test_bfloat16_stays_close(variables) -> None:
    plain = QueryDecoder(**SMALL).apply(variables, CONTEXT, QUERIES)["states"]
    half = QueryDecoder(**SMALL, dtype=jnp.bfloat16).apply(variables, CONTEXT, QUERIES)["states"]
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), plain, atol=0.1)


def test_queries_are_checked() -> None:
    with pytest.raises(UserError, match="learns its queries"):
        shapes(QueryDecoder(**SMALL, learned=3))
    with pytest.raises(UserError, match="needs queries"):
        shapes(QueryDecoder(**SMALL), None)
    with pytest.raises(UserError, match="project_queries"):
        shapes(QueryDecoder(**SMALL), np.zeros((5, 7), np.float32))
