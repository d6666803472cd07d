"""Without these, frozen layers would move, biases would decay, and prototypes would leave the sphere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from medvlp_jax import optim
from medvlp_jax.errors import UserError

PARAMS = {
    "model": {
        "a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2,))},
        "b": {"kernel": jnp.full((2, 2), 2.0)},
    },
    "proto": {"prototypes": jnp.eye(2, 4)},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def run(steps: int, grads=GRADS, **settings):
    group = common.optim(lr=0.1, schedule="constant", warmup="0", clip_norm=0.0, **settings)
    tx, _ = optim.make_optimizer(group, PARAMS, total=100, steps_per_epoch=10)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_weight_decay_only_touches_kernels() -> None:
    params = run(1, jax.tree.map(jnp.zeros_like, GRADS), weight_decay=0.5)
    np.testing.assert_allclose(params["model"]["a"]["kernel"], 0.95, rtol=1e-6)  # 1 - lr * wd
    np.testing.assert_array_equal(params["model"]["a"]["bias"], 1.0)


def test_adamw_first_step_is_the_learning_rate() -> None:
    params = run(1, weight_decay=0.0)
    np.testing.assert_allclose(params["model"]["a"]["bias"], 0.9, rtol=1e-5)


def test_adamw_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    grads = rng.normal(size=(5, 4, 3)).astype(np.float32)
    ours = {"kernel": jnp.asarray(start)}
    for name, cls in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)):
        weight = torch.nn.Parameter(torch.tensor(start))
        theirs = cls([weight], lr=0.1, weight_decay=0.05)
        group = common.optim(
            lr=0.1, name=name, schedule="constant", warmup="0", clip_norm=0.0, weight_decay=0.05
        )
        tx, _ = optim.make_optimizer(group, ours, total=100, steps_per_epoch=10)
        params, state = ours, tx.init(ours)
        for grad in grads:
            updates, state = tx.update({"kernel": jnp.asarray(grad)}, state, params)
            params = optax.apply_updates(params, updates)
            weight.grad = torch.tensor(grad)
            theirs.step()
        np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), atol=5e-6)


def test_frozen_group_never_moves_and_multiplier_scales() -> None:
    params = run(
        3, weight_decay=0.0, groups=(("model/b", {"freeze": True}), ("bias$", {"lr_mult": 0.5}))
    )
    np.testing.assert_array_equal(params["model"]["b"]["kernel"], 2.0)
    np.testing.assert_allclose(params["model"]["a"]["bias"], 1 - 3 * 0.05, rtol=1e-5)
    np.testing.assert_allclose(params["model"]["a"]["kernel"], 1 - 3 * 0.1, rtol=1e-5)


def test_freeze_schedule_starts_fresh_when_it_ends() -> None:
    """After the freeze the first update equals a first step (bias correction included)."""
    frozen = run(10, weight_decay=0.1, groups=(("model/b", {"freeze": "1ep"}),))
    np.testing.assert_array_equal(frozen["model"]["b"]["kernel"], 2.0)
    moved = run(11, weight_decay=0.0, groups=(("model/b", {"freeze": "1ep"}),))
    np.testing.assert_allclose(moved["model"]["b"]["kernel"], 1.9, rtol=1e-5)


def test_frozen_gradients_do_not_count_in_the_clip_norm() -> None:
    group = common.optim(
        lr=1.0, name="sgd", momentum=0.0, schedule="constant", warmup="0", weight_decay=0.0,
        clip_norm=1.0, groups=(("model/b|proto", {"freeze": True}),),
    )  # fmt: skip
    tx, _ = optim.make_optimizer(group, PARAMS, total=10, steps_per_epoch=1)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    # Eight active gradients of 1: each is scaled to 1/sqrt(8).
    np.testing.assert_allclose(updates["model"]["a"]["bias"], -1 / np.sqrt(8), rtol=1e-5)


def test_prototypes_stay_on_the_unit_sphere() -> None:
    params = run(7, unit_norm=("prototypes$",))
    norms = np.linalg.norm(params["proto"]["prototypes"], axis=-1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-6)
    assert not np.allclose(params["proto"]["prototypes"], PARAMS["proto"]["prototypes"])


def test_schedule_warms_up_and_ends_low() -> None:
    group = common.optim(lr=1.0, warmup="10%", min_lr=0.1)
    schedule = optim.make_schedule(group, total=100, steps_per_epoch=10)
    assert float(schedule(0)) == pytest.approx(0.1)
    assert float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(100)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": (("modle/b", {"freeze": True}),)}, "match no parameter"),
        ({"groups": (("model", {"lr": 1.0}),)}, "unknown"),
        ({"unit_norm": ("protos$",)}, "match no parameter"),
        ({"name": "adamwx"}, "one of"),
    ],
)
def test_wrong_settings_are_refused(settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(1, **settings)
