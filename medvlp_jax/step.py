"""Pure functions of one training step. Knows no system: the objectives bring everything special.

One step: preprocess on the device, one forward pass per distinct corruption, weighted sum of the
objectives, gradient, optimiser, moving average. All inside one `jax.jit` with the state donated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medvlp_jax.losses.momentum_contrast import follow
from medvlp_jax.models import lora
from medvlp_jax.objectives.system import System
from medvlp_jax.parallel.mesh import batch_sharding, replicated
from medvlp_jax.parallel.rules import Rule, state_shardings
from medvlp_jax.types import Batch, Metrics

Preprocess = Callable[[Batch], Batch]


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training; arrays only.

    Attributes:
        step: int32, number of steps done.
        params: nested dict, float32.
        opt_state: state of the optax chain.
        model_state: mutable collections of the model (`batch_stats`, queues ...) and, when the
            moving average is on, `ema_params`.
        rng: base key; the key of a step is `fold_in(rng, step)`, so a resumed run draws the same.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    rng: jax.Array
    lora_scale: float = flax.struct.field(pytree_node=False, default=0.0)


def variables(state: TrainState, *, averaged: bool = False) -> dict[str, Any]:
    """Variables for `System.apply`; `averaged` takes the moving average where it exists."""
    collections = {k: v for k, v in state.model_state.items() if k != "ema_params"}
    params = state.params
    if averaged and "ema_params" in state.model_state:
        params = state.model_state["ema_params"]
    return {"params": lora.merged(params, state.lora_scale), **collections}


def make_init(
    system: System,
    make_tx: Callable[[Any], optax.GradientTransformation],
    preprocess: Preprocess,
    *,
    ema_decay: float = 0.0,
    adapters: Mapping[str, Any] | None = None,
) -> Callable[[jax.Array, Batch], TrainState]:
    """Returns `(key, batch) -> TrainState` for `jax.eval_shape` or `jax.jit`.

    Args:
        system: model and objectives.
        make_tx: builds the optimiser from the parameters (or their shapes).
        preprocess: what happens to a batch on the device.
        ema_decay: > 0 adds `ema_params` to the model state.
        adapters: regex, rank and alpha of LoRA adapters, which become `params["lora"]`; None = none.
    """

    def init(key: jax.Array, batch: Batch) -> TrainState:
        init_key, run_key = jax.random.split(key)
        names: tuple[str, ...] = ("params", "dropout", "corruption")
        rngs: Any = dict(zip(names, jax.random.split(init_key, len(names)), strict=True))
        collections = dict(system.init(rngs, preprocess(batch), train=False))
        params = collections.pop("params")
        scale = 0.0
        if adapters:
            lora_key, scale = jax.random.fold_in(init_key, 1), adapters["alpha"] / adapters["rank"]
            new = lora.init(lora_key, params["model"], adapters["regex"], rank=adapters["rank"])
            params = {**params, "lora": new}
        if ema_decay:
            collections["ema_params"] = jax.tree.map(jnp.copy, params)
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            opt_state=make_tx(params).init(params),
            model_state=collections,
            rng=run_key,
            lora_scale=scale,
        )

    return init


def place_state(
    init: Callable[[jax.Array, Batch], TrainState],
    key: jax.Array,
    batch: Batch,
    mesh: Mesh,
    rules: tuple[Rule, ...] = (),
) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the state without allocating anything: `(shapes, shardings)`."""
    shapes = jax.eval_shape(init, key, batch)
    return shapes, state_shardings(shapes, shapes.params, mesh, rules)


def _hold(params: Any, frozen: Any) -> Any:
    """Parameters of which the marked ones have no gradient."""
    if frozen is None:
        return params
    stop = jax.lax.stop_gradient
    return jax.tree.map(lambda x, keep: stop(x) if keep else x, params, frozen)


def make_train_step(
    system: System,
    tx: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    preprocess: Preprocess,
    *,
    shardings: TrainState,
    mesh: Mesh,
    ema_decay: float = 0.0,
    frozen: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step `(state, batch) -> (state, metrics)`; the old state's memory is reused.

    `frozen`: tree of bools like the parameters. Nothing is kept or computed for the gradient of those; a
    tower that is frozen as a whole costs no more than in evaluation.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.rng, state.step)
        rngs = {
            name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "corruption"))
        }
        batch = preprocess(batch)
        collections = variables(state)
        collections.pop("params")

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            (loss, metrics), updated = system.apply(
                {"params": lora.merged(_hold(params, frozen), state.lora_scale), **collections},
                batch,
                train=True,
                rngs=rngs,
                mutable=list(collections),
            )
            return loss, (metrics, updated)

        (loss, (metrics, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        model_state = dict(updated)
        if ema_decay:
            model_state["ema_params"] = follow(state.model_state["ema_params"], params, ema_decay)
        metrics = {
            **metrics,
            "loss": loss,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        changed = dict(
            step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state
        )
        return dataclasses.replace(state, **changed), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
