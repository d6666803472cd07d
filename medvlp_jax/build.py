"""From a config to objects. Names are module paths: a new file is found without being listed anywhere.

`name="vit"` means `medvlp_jax.models.vit.Encoder`, `name="heads.MLPProjection"` that class; the objective
`token_alignment` means `medvlp_jax.objectives.token_alignment.TokenAlignment`. The remaining keys are the
constructor's arguments, so a misspelt key stops here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from medvlp_jax import config as config_lib
from medvlp_jax.config import Config
from medvlp_jax.data import device_transforms, pipeline, text
from medvlp_jax.errors import UserError
from medvlp_jax.interop import pretrained
from medvlp_jax.models.vision_language import VisionLanguageModel, innermost
from medvlp_jax.objectives.system import System
from medvlp_jax.types import PIXEL_KEYS, Batch

_MODEL_PARTS = (
    "image_encoder",
    "text_encoder",
    "image_projection",
    "text_projection",
    "image_token_projection",
    "text_token_projection",
    "fusion",
    "context_projection",
    "text_decoder",
)
_TEXT_PARTS = ("text_encoder", "text_decoder")
_MODEL_OPTIONS = ("image_pooling", "merge_words", "last_layers", "text_pooling")


def camel_case(name: str) -> str:
    """`token_alignment` -> `TokenAlignment`."""
    return "".join(part.capitalize() for part in name.split("_"))


def load_class(package: str, name: str, key: str, *, attribute: str = "") -> tuple[Any, Any]:
    """Finds the class a config names.

    Args:
        package: "models", "objectives" or "tasks".
        name: "module" or "module.Class".
        key: config key, for the error.
        attribute: class name when `name` has none.

    Returns:
        module, class.

    Raises:
        UserError: no such module or class; names the nearest ones.
    """
    module_name, _, class_name = name.partition(".")
    parent = importlib.import_module(f"medvlp_jax.{package}")
    known = [info.name for info in pkgutil.iter_modules(parent.__path__)]
    if module_name not in known:
        near = difflib.get_close_matches(module_name, known, n=3)
        raise UserError(
            f"config key {key}: medvlp_jax/{package}/{module_name}.py does not exist; "
            f"{'near it: ' + ', '.join(near) if near else 'there are: ' + ', '.join(sorted(known))}"
        )
    module = importlib.import_module(f"medvlp_jax.{package}.{module_name}")
    wanted = class_name or attribute
    if not hasattr(module, wanted):
        raise UserError(f"config key {key}: medvlp_jax/{package}/{module_name}.py has no {wanted}")
    return module, getattr(module, wanted)


def construct(cls: Any, settings: Mapping[str, Any], key: str, injected: Mapping[str, Any]) -> Any:
    """Calls a (module) dataclass with config settings.

    Args:
        cls: the class.
        settings: keyword arguments from the config; lists and dicts are made hashable.
        key: config key, for the error.
        injected: values known only at run time (vocabulary size, compute type ...), used for fields of
            that name which the config leaves out.

    Raises:
        UserError: a key the class does not have.
    """
    fields = {
        f.name for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")
    }
    unknown = sorted(set(settings) - fields)
    if unknown:
        raise UserError(
            f"config key {key}.{unknown[0]} does not exist; {cls.__name__} takes {', '.join(sorted(fields))}"
        )
    values = {k: v for k, v in injected.items() if k in fields}
    values.update({k: _plain(v) for k, v in settings.items()})
    return cls(**values)


def _plain(value: Any) -> Any:
    """ConfigDict -> dict, list -> tuple, so that modules stay hashable and immutable."""
    if isinstance(value, ConfigDict | Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value


def build_model(
    config: Config, *, vocab_size: int, eos_token_id: int | None = None
) -> VisionLanguageModel:
    """The model of `config.model`.

    Args:
        config: full config.
        vocab_size: number of tokens of the tokenizer; the embedding table must hold them all.
        eos_token_id: the token that closes a text, where CLIP's text tower reads it.

    Raises:
        UserError: unknown part, variant or key; a tokenizer larger than the embedding table.
    """
    injected = {
        "dtype": jnp.dtype(config.model.get("dtype", "float32")),
        "vocab_size": vocab_size,
        "eos_token_id": eos_token_id,
        "image_size": config.data.image.size,
        "in_channels": config.data.image.channels,
    }
    parts: dict[str, Any] = {}
    for part in _MODEL_PARTS:
        settings = config.model.get(part)
        if settings:
            parts[part] = _build_part(f"model.{part}", dict(settings), injected)
    unknown = set(config.model) - set(_MODEL_PARTS) - {"dtype", "lora", *_MODEL_OPTIONS}
    if unknown:
        raise UserError(
            f"config key model.{min(unknown)} does not exist; the model has {', '.join(_MODEL_PARTS)}"
        )
    _check_parts(parts, config, vocab_size)
    extra = {k: config.model[k] for k in _MODEL_OPTIONS if k in config.model}
    return construct(VisionLanguageModel, {**parts, **extra}, "model", {})


def _check_parts(parts: Mapping[str, Any], config: Config, vocab_size: int) -> None:
    """What the parts need of each other and of the data.

    Raises:
        UserError: an encoder is missing, the tokenizer is larger than an embedding table, or the image
            encoder cannot read prior images.
    """
    if "image_encoder" not in parts:
        raise UserError("config key model.image_encoder is missing: every system needs one")
    if "text_encoder" not in parts and "text_decoder" not in parts:
        raise UserError(
            "config key model.text_encoder is missing: every system needs a text encoder, or a text_decoder "
            "that writes the text"
        )
    for part in _TEXT_PARTS:
        table = innermost(parts[part]).vocab_size if part in parts else vocab_size
        if table < vocab_size:
            raise UserError(
                f"the tokenizer has {vocab_size} tokens but model.{part}.vocab_size is {table}; "
                "leave vocab_size out (it then follows the tokenizer) or use the tokenizer of that encoder"
            )
    takes = inspect.signature(type(parts["image_encoder"]).__call__).parameters
    if config.data.image.get("prior") and "prior_image" not in takes:
        raise UserError(
            "config key data.image.prior=True needs an image encoder that reads prior images: set "
            "model.image_encoder.name='multi_image', or leave prior out"
        )


def _build_part(key: str, settings: dict[str, Any], injected: Mapping[str, Any]) -> Any:
    """One encoder, projection or fusion from its settings (`name`, optional `variant`, arguments).

    An argument that is itself a group with a `name` is another module, e.g. the `tower` of `frames`.
    """
    if "name" not in settings:
        raise UserError(f"config key {key}.name is missing: it names a file in medvlp_jax/models/")
    name, variant = settings.pop("name"), settings.pop("variant", None)
    settings.pop("init", None)  # weights to start from, see warm_start.py
    module, cls = load_class("models", name, key, attribute="Encoder")
    defaults: dict[str, Any] = {}
    if variant is not None:
        if variant not in module.VARIANTS:
            raise UserError(
                f"config key {key}.variant={variant!r}: {name} has {', '.join(module.VARIANTS)}"
            )
        defaults = dict(module.VARIANTS[variant])
        # The size of a variant's own vocabulary or image only counts when the config asks for it.
        for follows in ("vocab_size", "image_size"):
            if follows in injected:
                defaults.pop(follows, None)
    for argument, value in settings.items():
        if isinstance(value, ConfigDict | Mapping) and "name" in value:
            settings[argument] = _build_part(f"{key}.{argument}", dict(value), injected)
    return construct(cls, {**defaults, **settings}, key, injected)


def build_system(config: Config, tokenizer: Any) -> System:
    """Model and objectives of a config.

    Raises:
        UserError: see `build_model`; no objective; unknown objective or key.
    """
    model = build_model(
        config, vocab_size=text.vocab_size(tokenizer), eos_token_id=tokenizer.sep_token_id
    )
    injected = {
        "vocab_size": text.vocab_size(tokenizer),
        "mask_id": tokenizer.mask_token_id,
        "special_ids": tokenizer.special_token_ids,
        "patch_size": getattr(innermost(model.image_encoder), "patch_size", None),
        "in_channels": config.data.image.channels,
        "dtype": jnp.dtype(config.model.get("dtype", "float32")),
        "variant": config.variant,
    }
    if not len(config.objectives):
        raise UserError("config key objectives is empty: name at least one, e.g. info_nce")
    objectives, weights = {}, {}
    for key, group in config.objectives.items():
        settings = dict(group)
        weights[key] = float(settings.pop("weight", 1.0))
        name = settings.pop("name", key)
        where = f"objectives.{key}"
        _, cls = load_class("objectives", name, where, attribute=camel_case(name))
        objectives[key] = construct(cls, settings, where, injected)
    return System(model=model, objectives=objectives, weights=weights)


def build_tasks(config: Config, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Tasks of `config.eval.tasks` (or those named), key -> Task."""
    groups = {k: dict(v) for k, v in config.eval.tasks.items()}
    for name in names:
        groups.setdefault(name, {})
    chosen = {k: v for k, v in groups.items() if not names or k in names}
    injected = {"bootstrap_samples": config.eval.bootstrap_samples, "seed": config.seed}
    tasks = {}
    for key, settings in chosen.items():
        name = settings.pop("name", key)
        _, cls = load_class("tasks", name, f"eval.tasks.{key}", attribute=camel_case(name))
        tasks[key] = construct(cls, settings, f"eval.tasks.{key}", injected)
    return tasks


def build_tokenizer(config: Config, workdir: str | pathlib.Path) -> Any:
    """The tokenizer of a run: the one kept in its workdir, else made or loaded as the config says.

    It is stored in `workdir/tokenizer`, so a run never depends on a hub or on a corpus that changed.
    """
    folder = pathlib.Path(workdir) / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return text.load_tokenizer(str(folder))
    sources = pretrained_sources(config)
    source = next((s for path, s in sources.items() if path[0] in _TEXT_PARTS), None)
    tokenizer = _checkpoint_tokenizer(source, config) if source else None
    if tokenizer is None:
        tokenizer = pipeline.config_tokenizer(config.data)
    if jax.process_index() == 0:
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def pretrained_sources(config: Config) -> dict[tuple[str, ...], str]:
    """Path of a module below `model` -> checkpoint it starts from, for those whose config has an `init`."""
    found: dict[tuple[str, ...], str] = {}

    def walk(settings: Any, path: tuple[str, ...]) -> None:
        if settings.get("init"):
            found[path] = str(settings["init"])
        for name, value in settings.items():
            if isinstance(value, ConfigDict | Mapping):
                walk(value, (*path, name))

    for part in _MODEL_PARTS:
        walk(config.model.get(part) or {}, (part,))
    return found


def _checkpoint_tokenizer(source: str, config: Config) -> Any:
    """The tokenizer that a text checkpoint was trained with; None = the config names it.

    Raises:
        UserError: there is none, or the config names one with other tokens.
    """
    folder, wanted = pretrained.tokenizer_folder(source), config.data.text.tokenizer
    if folder is None:
        if not wanted:
            raise UserError(
                f"no tokenizer lies beside {source}: set data.text.tokenizer to the vocab.txt or folder "
                "of the tokenizer of this checkpoint"
            )
        return None
    own = text.load_tokenizer(str(folder))
    if wanted and text.load_tokenizer(wanted).backend.get_vocab() != own.backend.get_vocab():
        raise UserError(
            f"data.text.tokenizer={wanted!r} has other tokens than the tokenizer of {source}, whose "
            "weights it would scramble; leave data.text.tokenizer out"
        )
    return own


def make_preprocess(config: Config) -> Any:
    """Device side of the input: all pixels of a batch from uint8 to normalised float32."""
    image = config.data.image
    mean, std, channels = tuple(image.mean), tuple(image.std), image.channels

    def preprocess(batch: Batch) -> Batch:
        pixels = {
            key: device_transforms.normalise(batch[key], mean, std, channels)
            for key in PIXEL_KEYS
            if key in batch
        }
        return {**batch, **pixels}

    return preprocess


def lora_settings(config: Config) -> dict[str, Any] | None:
    """`config.model.lora` (regex, rank, alpha), None when its regex is empty.

    Raises:
        UserError: a key is missing or not known, or rank or alpha is not positive.
    """
    settings = dict(config.model.get("lora") or {})
    if not settings.get("regex"):
        return None
    if set(settings) != {"regex", "rank", "alpha"}:
        raise UserError(
            f"config key model.lora takes regex, rank and alpha, got {sorted(settings)}"
        )
    if settings["rank"] < 1 or settings["alpha"] <= 0:
        raise UserError("config keys model.lora.rank and model.lora.alpha must be positive")
    return settings


def sharding_rules(config: Config) -> tuple[Any, ...]:
    """Placement rules of the config; () stands for the defaults."""
    return tuple(_plain(config.mesh.rules))


def load_run_config(workdir: str | pathlib.Path) -> Config:
    """The config that a workdir was trained with.

    Raises:
        UserError: the folder is not a workdir.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected the --workdir of a training")
    return config_lib.from_json(path.read_text(encoding="utf-8"))
