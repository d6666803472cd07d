"""Without these, a corrupt or foreign checkpoint would end in a stack trace or, worse, be loaded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.checkpoint import Checkpoints, abstract
from medvlp_jax.errors import UserError
from medvlp_jax.parallel.mesh import make_mesh, replicated


def make_state(value: float):
    return {"params": {"kernel": jnp.full((4, 3), value)}, "rng": jax.random.key(0)}


def like(state):
    sharding = replicated(make_mesh({"data": 8}))
    shapes = jax.eval_shape(lambda: state)
    return abstract(shapes, jax.tree.map(lambda _: sharding, shapes))


def save(folder, steps, **options) -> None:
    manager = Checkpoints(folder, **options)
    for step in steps:
        manager.save(
            step,
            make_state(float(step)),
            data_state={"next_index": step},
            config={"a": {"b": step}},
            metrics={"score": float(-abs(step - 2))},
        )
    manager.close()


def test_round_trip(tmp_path) -> None:
    save(tmp_path, [3])
    state, data, config = Checkpoints(tmp_path, read_only=True).restore(3, like(make_state(0.0)))
    np.testing.assert_array_equal(state["params"]["kernel"], 3.0)
    assert (
        jax.random.key_data(state["rng"]).tolist()
        == jax.random.key_data(jax.random.key(0)).tolist()
    )
    assert data == {"next_index": 3}
    assert config == {"a": {"b": 3}}


def test_keeps_last_and_best(tmp_path) -> None:
    save(tmp_path, [1, 2, 3, 4, 5], keep_last=2, keep_best=1, best_metric="score")
    assert sorted(
        int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()
    ) == [
        2,
        4,
        5,
    ]
    manager = Checkpoints(tmp_path, best_metric="score", read_only=True)
    assert (manager.best_step(), manager.latest_step()) == (2, 5)


def test_no_checkpoint_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no checkpoints"):
        Checkpoints(tmp_path / "nothing", read_only=True)


def test_foreign_architecture_is_refused_by_name(tmp_path) -> None:
    save(tmp_path, [1])
    other = {
        "params": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)},
        "rng": jax.random.key(0),
    }
    with pytest.raises(UserError, match=r"params/bias: checkpoint lacks it(.|\n)*params/kernel"):
        Checkpoints(tmp_path, read_only=True).restore(1, like(other))


def test_corrupt_checkpoint_names_folder_and_remedy(tmp_path) -> None:
    save(tmp_path, [1, 2])
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read(.|\n)*go on from step 1"):
        Checkpoints(tmp_path, read_only=True).restore(2, like(make_state(0.0)))
    state, _, _ = Checkpoints(tmp_path, read_only=True).restore(1, like(make_state(0.0)))
    np.testing.assert_array_equal(state["params"]["kernel"], 1.0)


def test_saved_arrays_survive_donation(tmp_path) -> None:
    """The asynchronous save must hold its own copy: the next step overwrites the state's memory."""
    manager = Checkpoints(tmp_path)
    state = {"x": jnp.arange(1_000_000, dtype=jnp.float32)}
    bump = jax.jit(lambda s: {"x": s["x"] + 1}, donate_argnums=0)
    manager.save(1, state, data_state=0, config={})
    for _ in range(5):
        state = bump(state)
    manager.close()
    restored, _, _ = Checkpoints(tmp_path, read_only=True).restore(
        1, like({"x": jnp.zeros(1_000_000)})
    )
    np.testing.assert_array_equal(restored["x"], np.arange(1_000_000))
