"""Puts pretrained weights into a fresh state: `init` of any part of `config.model`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import build
from medvlp_jax.data import text
from medvlp_jax.errors import UserError
from medvlp_jax.interop import pretrained
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.parallel.distributed import is_main_process
from medvlp_jax.step import TrainState


def warm_start(
    state: TrainState,
    model: VisionLanguageModel,
    checkpoints: Mapping[tuple[str, ...], str],
    shardings: TrainState,
) -> TrainState:
    """State whose named modules hold the weights of checkpoints; everything else stays as it is.

    Args:
        state: fresh state; its moving average of the parameters, if it has one, starts there too.
        model: the model, whose modules say which namings they know.
        checkpoints: path of a module below the model -> source; see `build.pretrained_sources` and
            `interop.weights.read`.
        shardings: placement of the state.

    Raises:
        UserError: a checkpoint cannot be read or does not fit.
    """
    for part, source in checkpoints.items():
        path = ("model", *part)
        shapes = {"params": _at(state.params, path)}
        stats = _at(state.model_state.get("batch_stats", {}), path)
        if stats:
            shapes["batch_stats"] = stats
        module = functools.reduce(getattr, part, model)
        loaded = pretrained.load(module, shapes, source)
        if is_main_process():
            print(f"{'/'.join(part)} from {source}\n  {loaded.report()}", flush=True)
        params = _replaced(state.params, shardings.params, path, loaded.variables["params"])
        model_state = dict(state.model_state)
        if stats:
            model_state["batch_stats"] = _replaced(
                model_state["batch_stats"],
                shardings.model_state["batch_stats"],
                path,
                loaded.variables["batch_stats"],
            )
        state = dataclasses.replace(state, params=params, model_state=model_state)
    if checkpoints and "ema_params" in state.model_state:
        copy = jax.tree.map(jnp.copy, state.params)  # a step gives both away
        state = dataclasses.replace(state, model_state={**state.model_state, "ema_params": copy})
    return state


def try_checkpoint(
    source: str, name: str, variant: str, *, image_size: int = 224, channels: int = 3
) -> str:
    """Reads a checkpoint into a tower without training anything: `medvlp import`.

    Args:
        source: see `interop.weights.read`.
        name, variant: tower as a config names it, e.g. "vit" and "B/16".
        image_size: side of the images in pixels.
        channels: channels of the images.

    Returns:
        What was read, what was not and why, and the number of parameters.

    Raises:
        UserError: no such tower, or the checkpoint cannot be read or does not fit.
    """
    module, cls = build.load_class("models", name, "--name", attribute="Encoder")
    if variant not in module.VARIANTS:
        raise UserError(f"--variant {variant}: {name} has {', '.join(module.VARIANTS)}")
    settings = dict(module.VARIANTS[variant])
    if "vocab_size" in {f.name for f in dataclasses.fields(cls)}:
        folder = pretrained.tokenizer_folder(source)
        if folder is not None:
            settings["vocab_size"] = text.vocab_size(text.load_tokenizer(str(folder)))
        inputs = (jax.ShapeDtypeStruct((1, 8), np.int32),) * 2
    else:
        inputs = (jax.ShapeDtypeStruct((1, image_size, image_size, channels), np.float32),)
    encoder = cls(**settings)
    shapes = jax.eval_shape(lambda *x: encoder.init(jax.random.key(0), *x), *inputs)
    loaded = pretrained.load(encoder, dict(shapes), source)
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables))
    return f"{name} {variant} from {source}\n  {loaded.report()}\n  {count:,} values read"


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Subtree at a path, {} where there is none."""
    return functools.reduce(lambda below, name: below.get(name, {}), path, tree)


def _replaced(tree: Any, shardings: Any, path: tuple[str, ...], new: Any) -> Any:
    """`tree` with the leaves of `new` below `path`; what `new` lacks stays."""
    if path:
        head, *rest = path
        return {**tree, head: _replaced(tree[head], shardings[head], tuple(rest), new)}
    out = dict(tree)
    for name, value in new.items():
        if isinstance(value, Mapping):
            out[name] = _replaced(tree[name], shardings[name], (), value)
        else:
            out[name] = _placed(np.asarray(value, tree[name].dtype), shardings[name])
    return out


def _placed(value: np.ndarray, sharding: Any) -> jax.Array:
    """Every process reads the whole file and keeps its own part."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
