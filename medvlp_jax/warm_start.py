"""Puts pretrained weights into a fresh state: `config.model.image_encoder.init`, `...text_encoder.init`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import build
from medvlp_jax.config import Config
from medvlp_jax.data import text
from medvlp_jax.errors import UserError
from medvlp_jax.interop import pretrained
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.parallel.distributed import is_main_process
from medvlp_jax.step import TrainState

TOWERS = ("image_encoder", "text_encoder")


def sources(config: Config) -> dict[str, str]:
    """Tower -> checkpoint it starts from, for those that name one."""
    found = {}
    for tower in TOWERS:
        init = (config.model.get(tower) or {}).get("init")
        if init:
            found[tower] = str(init)
    return found


def warm_start(
    state: TrainState,
    model: VisionLanguageModel,
    checkpoints: Mapping[str, str],
    shardings: TrainState,
) -> TrainState:
    """State whose named towers hold the weights of checkpoints; everything else stays as it is.

    Args:
        state: fresh state; its moving average of the parameters, if it has one, starts there too.
        model: the model, whose towers say which namings they know.
        checkpoints: tower -> source, see `interop.weights.read`.
        shardings: placement of the state.

    Raises:
        UserError: a checkpoint cannot be read or does not fit.
    """
    for tower, source in checkpoints.items():
        shapes = {"params": state.params["model"][tower]}
        stats = state.model_state.get("batch_stats", {}).get("model", {}).get(tower)
        if stats is not None:
            shapes["batch_stats"] = stats
        loaded = pretrained.load(getattr(model, tower), shapes, source)
        if is_main_process():
            print(f"{tower} from {source}\n  {loaded.report()}", flush=True)
        path = ("model", tower)
        params = _replaced(state.params, shardings.params, path, loaded.variables["params"])
        model_state = dict(state.model_state)
        if stats is not None:
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
