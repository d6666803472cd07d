"""Without these, a parameter could silently stay whole on every device, or a mesh be misread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from medvlp_jax.errors import UserError
from medvlp_jax.parallel import rules
from medvlp_jax.parallel.mesh import check_batch, make_mesh, put_batch

PARAMS = {
    "layer_0": {"query": {"kernel": jnp.zeros((8, 16)), "bias": jnp.zeros((16,))}},
    "word_embeddings": {"embedding": jnp.zeros((1003, 8))},
    "patch": {"kernel": jnp.zeros((16, 16, 3, 64))},
}


@pytest.fixture
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def test_default_rules(mesh) -> None:
    specs = rules.parameter_specs(PARAMS, mesh)
    assert specs["layer_0/query/kernel"] == PartitionSpec("fsdp", "tensor")
    assert specs["layer_0/query/bias"] == PartitionSpec()
    # 1003 does not divide by 2, so the table stays whole instead of failing.
    assert specs["word_embeddings/embedding"] == PartitionSpec(None, None)
    assert specs["patch/kernel"] == PartitionSpec(None, None, None, "fsdp")


def test_first_match_wins_and_every_rule_must_match(mesh) -> None:
    own = (("kernel", "replicate"), ("query", ("fsdp", None)), ("", "fsdp"))
    with pytest.raises(UserError, match="no parameter"):
        rules.parameter_specs({"patch": PARAMS["patch"]}, mesh, own)
    specs = rules.parameter_specs(PARAMS, mesh, (("kernel", "replicate"), ("", "fsdp")))
    assert specs["layer_0/query/kernel"] == PartitionSpec()


def test_unmatched_parameter_and_unknown_axis(mesh) -> None:
    with pytest.raises(UserError, match="no sharding rule matches parameter layer_0/query/bias"):
        rules.parameter_specs(PARAMS, mesh, (("kernel|embedding", "fsdp"),))
    with pytest.raises(UserError, match="names mesh axis 'model'"):
        rules.parameter_specs(PARAMS, mesh, (("", ("model", None)),))


def test_optimizer_moments_follow_their_parameters(mesh) -> None:
    import optax

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = jax.eval_shape(tx.init, PARAMS)
    placed = dict(rules.flat_paths(rules.state_shardings(state, PARAMS, mesh)))
    moment = next(s for path, s in placed.items() if path.endswith("mu/layer_0/query/kernel"))
    assert moment.spec == PartitionSpec("fsdp", "tensor")
    assert next(s for path, s in placed.items() if path.endswith("count")).spec == PartitionSpec()


def test_placement_table_shows_bytes_per_device(mesh) -> None:
    table = rules.placement_table(PARAMS, mesh)
    line = next(row for row in table.splitlines() if row.startswith("layer_0/query/kernel"))
    assert line.split()[-1] == str(8 * 16 * 4 // 4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "fsdp": -1}, "do not divide"),
        ({"data": 2}, "there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
    ],
)
def test_wrong_mesh_is_refused(sizes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(sizes)


def test_batch_must_divide(mesh) -> None:
    check_batch(8, mesh, "k")
    with pytest.raises(UserError, match=r"data\.global_batch_size=6 .* use 4 or 8"):
        check_batch(6, mesh, "data.global_batch_size")


def test_put_batch_splits_the_rows(mesh) -> None:
    batch = put_batch({"x": np.arange(8, dtype=np.float32)[:, None]}, mesh)
    assert batch["x"].shape == (8, 1)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(batch["x"][:, 0], np.arange(8))
