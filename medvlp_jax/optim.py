"""Optimiser from a config: schedule, clipping, path-regex groups, frozen and projected parameters.

The chain is

    zero frozen gradients -> clip by global norm -> per group (moments, weight decay, rate) -> unit norm

so frozen parameters neither count in the norm nor receive decay, as if they had no gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from medvlp_jax.config import duration
from medvlp_jax.errors import UserError
from medvlp_jax.parallel.rules import flat_paths, path_string

Schedule = Callable[[Any], Any]
_GROUP_KEYS = {"lr_mult", "weight_decay", "freeze"}


def make_schedule(optim: Mapping[str, Any], *, total: int, steps_per_epoch: int) -> Schedule:
    """Learning rate as a function of the step: linear warm-up, then cosine, linear or constant.

    Raises:
        UserError: unknown schedule, or a warm-up as long as the training.
    """
    warmup = duration(
        optim["warmup"], steps_per_epoch=steps_per_epoch, total=total, key="optim.warmup"
    )
    if warmup >= total:
        raise UserError(f"config key optim.warmup: {warmup} steps, but training has only {total}")
    peak, low, rest = optim["lr"], optim["min_lr"], max(1, total - warmup)
    shapes: dict[str, Schedule] = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=low / peak if peak else 0.0),
        "linear": optax.linear_schedule(peak, low, rest),
        "constant": optax.constant_schedule(peak),
    }
    if optim["schedule"] not in shapes:
        raise UserError(f"config key optim.schedule={optim['schedule']!r}: one of {sorted(shapes)}")
    after = shapes[optim["schedule"]]

    def schedule(step: Any) -> Any:
        # The first step already moves: (step + 1) / warmup, as in PyTorch's usual warm-up.
        ramp = peak * (step + 1) / max(1, warmup)
        return jnp.where(step < warmup, ramp, after(jnp.maximum(step - warmup, 0)))

    return schedule


class _Group(NamedTuple):
    """Settings of the parameters that one regex matches."""

    pattern: str
    lr_mult: float
    weight_decay: float
    freeze_steps: int | None  # None = for ever


def _groups(optim: Mapping[str, Any], *, total: int, steps_per_epoch: int) -> list[_Group]:
    groups = []
    for pattern, settings in tuple(optim["groups"]):
        unknown = set(settings) - _GROUP_KEYS
        if unknown:
            raise UserError(
                f"config key optim.groups[{pattern!r}]: unknown {sorted(unknown)}; "
                f"one of {sorted(_GROUP_KEYS)}"
            )
        freeze = settings.get("freeze", False)
        steps: int | None = 0
        if freeze is True:
            steps = None
        elif freeze:
            steps = duration(
                freeze,
                steps_per_epoch=steps_per_epoch,
                total=total,
                key=f"optim.groups[{pattern!r}]",
            )
        groups.append(
            _Group(
                pattern,
                float(settings.get("lr_mult", 1.0)),
                float(settings.get("weight_decay", optim["weight_decay"])),
                steps,
            )
        )
    groups.append(_Group("", 1.0, float(optim["weight_decay"]), 0))
    return groups


def assign_groups(params: Any, groups: list[_Group]) -> Any:
    """Tree of group indices as strings; every regex but the last, catch-all one must match something."""
    hits = [0] * len(groups)

    def label(path: Any, _: Any) -> str:
        text = path_string(path)
        index = next(i for i, g in enumerate(groups) if re.search(g.pattern, text))
        hits[index] += 1
        return str(index)

    labels = jax.tree_util.tree_map_with_path(label, params)
    missed = [g.pattern for g, n in zip(groups[:-1], hits[:-1], strict=True) if not n]
    if missed:
        raise UserError(
            f"config key optim.groups: {missed} match no parameter; paths look like "
            f"{', '.join(path for path, _ in flat_paths(params)[:3])} ..."
        )
    return labels


def make_optimizer(
    optim: Mapping[str, Any], params: Any, *, total: int, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optax chain of a config.

    Args:
        optim: the config's `optim` group.
        params: parameters or their shapes.
        total: number of steps of the run.
        steps_per_epoch: for durations in epochs.

    Returns:
        The transformation and the learning-rate schedule (for the log).
    """
    schedule = make_schedule(optim, total=total, steps_per_epoch=steps_per_epoch)
    groups = _groups(optim, total=total, steps_per_epoch=steps_per_epoch)
    labels = assign_groups(params, groups)
    decay_mask = jax.tree_util.tree_map_with_path(
        lambda path, _: bool(re.search(optim["decay_regex"], path_string(path))), params
    )
    transforms: dict[Hashable, optax.GradientTransformation] = {
        str(i): _group_transform(optim, group, schedule, decay_mask)
        for i, group in enumerate(groups)
    }
    chain = [freeze_gradients(labels, {str(i): g.freeze_steps for i, g in enumerate(groups)})]
    if optim["clip_norm"]:
        chain.append(optax.clip_by_global_norm(optim["clip_norm"]))
    chain.append(optax.partition(transforms, labels))
    if optim["unit_norm"]:
        chain.append(project_to_unit_norm(tuple(optim["unit_norm"]), params))
    return optax.chain(*chain), schedule


def frozen_for_ever(optim: Mapping[str, Any], params: Any) -> Any:
    """Tree of bools: which parameters have a group with `freeze=True`.

    Args:
        optim: the config's `optim` group.
        params: parameters or their shapes.
    """
    groups = _groups(optim, total=1, steps_per_epoch=1)
    labels = assign_groups(params, groups)
    return jax.tree.map(lambda label: groups[int(label)].freeze_steps is None, labels)


def _group_transform(
    optim: Mapping[str, Any], group: _Group, schedule: Schedule, decay_mask: Any
) -> optax.GradientTransformation:
    if group.freeze_steps is None:
        return optax.set_to_zero()
    dtype = jnp.dtype(optim["moment_dtype"])
    adam = optax.scale_by_adam(b1=optim["b1"], b2=optim["b2"], eps=optim["eps"], mu_dtype=dtype)
    decay = optax.add_decayed_weights(group.weight_decay, mask=lambda tree: _like(tree, decay_mask))
    rules: dict[str, tuple[optax.GradientTransformation, ...]] = {
        "adamw": (adam, decay),
        # torch.optim.Adam adds weight decay to the gradient, so the moments see it.
        "adam": (decay, adam),
        "sgd": (decay, optax.trace(decay=optim["momentum"])),
    }
    if optim["name"] not in rules:
        raise UserError(f"config key optim.name={optim['name']!r}: one of {sorted(rules)}")
    # The schedule counts all steps of the run, also those for which the group was frozen.
    offset = group.freeze_steps
    rate = optax.scale_by_schedule(lambda count: -group.lr_mult * schedule(count + offset))
    inner = optax.chain(*rules[optim["name"]], rate)
    return frozen_until(inner, group.freeze_steps) if group.freeze_steps else inner


def _like(tree: Any, mask: Any) -> Any:
    """Cuts the mask of all parameters to the (partitioned) tree a group sees."""
    return jax.tree.map(
        lambda leaf, keep: leaf if isinstance(leaf, optax.MaskedNode) else keep,
        tree,
        mask,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


class FrozenUntilState(NamedTuple):
    """State of `frozen_until`: steps seen and the wrapped transformation's state."""

    count: jax.Array
    inner: Any


def frozen_until(inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """Holds the wrapped transformation still for the first `steps` steps: no update, no moments, no
    count, as if the parameters had no gradient in that time (PyTorch's `p.grad = None`)."""

    def init(params: Any) -> FrozenUntilState:
        return FrozenUntilState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates: Any, state: FrozenUntilState, params: Any = None) -> Any:
        active = state.count >= steps
        moved, new_inner = inner.update(updates, state.inner, params)
        moved = jax.tree.map(lambda u: jnp.where(active, u, jnp.zeros_like(u)), moved)
        kept = jax.tree.map(lambda n, o: jnp.where(active, n, o), new_inner, state.inner)
        return moved, FrozenUntilState(state.count + 1, kept)

    return optax.GradientTransformation(init, cast(Any, update))


class FreezeState(NamedTuple):
    """State of `freeze_gradients`: steps seen."""

    count: jax.Array


def freeze_gradients(labels: Any, steps: Mapping[str, int | None]) -> optax.GradientTransformation:
    """Zeroes the gradients of groups that are frozen (None) or still frozen (a number of steps).

    They count neither for the clipped norm nor for the moments. The step itself takes no gradient of groups
    that are frozen for ever (`frozen_for_ever`), so their backward pass is not computed either.
    """

    def init(params: Any) -> FreezeState:
        del params
        return FreezeState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: FreezeState, params: Any = None) -> Any:
        del params

        def zero(update: jax.Array, label: str) -> jax.Array:
            frozen = steps[label]
            if frozen is None:
                return jnp.zeros_like(update)
            return jnp.where(state.count >= frozen, update, 0) if frozen else update

        return jax.tree.map(zero, updates, labels), FreezeState(state.count + 1)

    return optax.GradientTransformation(init, cast(Any, update))


def project_to_unit_norm(patterns: tuple[str, ...], params: Any) -> optax.GradientTransformation:
    """Last in the chain: rows of the matching parameters end each step with norm 1.

    Prototypes live on the unit sphere (MGCA, SwAV normalise them in place before each step).
    """
    paths = [path for path, _ in flat_paths(params)]
    missed = [p for p in patterns if not any(re.search(p, path) for path in paths)]
    if missed:
        raise UserError(f"config key optim.unit_norm: {missed} match no parameter")

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def project(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            if not any(re.search(pattern, path_string(path)) for pattern in patterns):
                return u
            moved = p + u
            norm = jnp.linalg.norm(moved, axis=-1, keepdims=True)
            return moved / jnp.maximum(norm, 1e-12) - p

        return jax.tree_util.tree_map_with_path(project, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), cast(Any, update))
