"""Shared pieces of the configs: functions that return plain config groups, never a base class."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from medvlp_jax.config import Config
from medvlp_jax.data.options import DataOptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def data(dataset: str = "synthetic_cxr", **overrides) -> Config:
    """What is read and how an image and its text become one row; keys and defaults are those of
    `medvlp_jax.data.options.DataOptions`. Overrides may be nested dicts."""
    group: Config = ConfigDict(dataclasses.asdict(DataOptions(dataset=dataset)))
    # Mild changes that keep left and right: a flip would make every "left" of the report wrong.
    group.image.augment = _update(
        group.image.augment,
        dict(crop="random_resized", crop_scale=(0.8, 1.0), crop_ratio=(0.9, 1.1), rotate=5.0,
             brightness=0.1, contrast=0.1),
    )  # fmt: skip
    return _update(group, overrides)


def optim(lr: float = 1e-4, **overrides) -> Config:
    """Optimiser. `groups` is a tuple of (path regex, settings); first match wins. Settings:
    lr_mult, weight_decay, freeze (True or a duration such as "1ep")."""
    group = ConfigDict(
        dict(
            name="adamw",  # adamw | adam (weight decay inside the gradient) | sgd
            lr=lr,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            momentum=0.9,
            weight_decay=0.05,
            decay_regex=r"(kernel|embedding)$",  # biases, norms and scales are never decayed
            schedule="cosine",  # cosine | linear | constant
            warmup="10%",
            min_lr=0.0,
            clip_norm=1.0,  # 0 = off
            groups=(),
            unit_norm=(),  # rows of these parameters stay on the unit sphere
            moment_dtype="float32",
        )
    )
    return _update(group, overrides)


def train(steps: str = "50ep", **overrides) -> Config:
    """The loop. Durations are steps ("500"), epochs ("3ep") or shares ("10%")."""
    group = ConfigDict(
        dict(
            steps=steps,
            log_every=20,
            eval_every="1ep",
            save_every="1ep",
            keep_last=2,
            keep_best=1,
            best_metric="",  # e.g. "zero_shot/synthetic_cxr/macro_auroc"; "" keeps by recency only
            best_mode="max",
            ema_decay=0.0,  # > 0 keeps an average of the parameters, which evaluation then uses
        )
    )
    return _update(group, overrides)


def mesh(**overrides) -> Config:
    """Device mesh and placement. -1 takes what is left. `rules`: () = `parallel.rules.DEFAULT_RULES`."""
    return _update(ConfigDict(dict(data=-1, fsdp=1, tensor=1, rules=())), overrides)


def evaluation(batch_size: int = 64, **tasks) -> Config:
    """Downstream tasks run during and after pretraining; by default zero-shot and retrieval."""
    tasks = tasks or dict(zero_shot=dict(), retrieval=dict())
    return ConfigDict(
        dict(batch_size=batch_size, bootstrap_samples=1000, split="test", tasks=tasks)
    )


def assemble(**groups) -> Config:
    """Puts the groups of one system together and fills in the ones not given."""
    config = ConfigDict(
        dict(name="", spec="", seed=0, variant="paper", data=data(), optim=optim(), train=train())
    )
    config.mesh = mesh()
    config.eval = evaluation()
    config.model = ConfigDict()
    config.objectives = ConfigDict()
    for key, value in groups.items():
        config[key] = value if not isinstance(value, dict) else ConfigDict(value)
    # LoRA on the kernels whose path matches; "" = none. Freeze the tower itself with optim.groups.
    config.model.lora = dict(regex="", rank=8, alpha=16.0)
    return config


def linear_heads(size: str, features: int) -> dict:
    """Linear projections of both towers without bias, as CLIP has them."""
    features = features if size == "full" else min(features, 128)
    head = dict(name="heads.LinearProjection", features=features, use_bias=False)
    return dict(image_projection=dict(head), text_projection=dict(head))


def mlp_heads(size: str, features: int, hidden: int | None = None) -> dict:
    """Two-layer projections of both towers (ConVIRT, SimCLR)."""
    features = features if size == "full" else min(features, 128)
    head = dict(name="heads.MLPProjection", features=features, hidden=hidden)
    return dict(image_projection=dict(head), text_projection=dict(head))


# `init` of an encoder: a checkpoint (file, folder or Hugging Face name) it starts from, docs/pretrained.md.


def vit(size: str, full: str = "B/16", **settings) -> dict:
    """ViT of the wanted size: the paper's ("full"), one for minutes on a CPU, or the smallest."""
    variant = {"full": full, "cpu": "quickstart/16", "smoke": "test/16"}[size]
    if size != "full":
        settings.pop("depth", None)  # belongs to the full tower
    return dict(name="vit", variant=variant, init="", **settings)


def resnet(size: str, full: str = "50", **settings) -> dict:
    """ResNet of the wanted size, see `vit`."""
    small = {"cpu": dict(variant="18", stem_width=16), "smoke": dict(variant="test")}
    return dict(name="resnet", init="", **small.get(size, dict(variant=full)), **settings)


def convnext(size: str, full: str = "T", **settings) -> dict:
    """ConvNeXt of the wanted size, see `vit`."""
    variant = {"full": full, "cpu": "quickstart", "smoke": "test"}[size]
    return dict(name="convnext", variant=variant, init="", **settings)


def bert(size: str, full: str = "base", **settings) -> dict:
    """BERT of the wanted size, see `vit`. Small ones train without dropout: they see little data."""
    variant = {"full": full, "cpu": "quickstart", "smoke": "test"}[size]
    if size != "full":
        settings = dict(settings, dropout=0.0, attention_dropout=0.0)
    return dict(name="bert", variant=variant, init="", **settings)


def clip_towers(size: str, full: str = "clip-B/32") -> dict:
    """OpenAI CLIP's two towers with its linear heads, see `vit`; `init` takes one file for both."""
    image, text = {
        "full": (full, full),
        "cpu": ("quickstart/16", "quickstart"),
        "smoke": ("test/16", "test"),
    }[size]
    clip = (
        {}
        if size == "full"
        else dict(pre_layernorm=True, activation="quick_gelu", patch_bias=False)
    )
    return dict(
        image_encoder=dict(name="vit", variant=image, pooling="cls", init="", **clip),
        text_encoder=dict(name="clip_text", variant=text, init=""),
        **linear_heads(size, 768 if full == "clip-L/14" else 512),
    )


def size_of(options: Config) -> str:
    """ "full", "cpu" or "smoke" from a config's arguments."""
    return "smoke" if options.smoke else "cpu" if options.cpu else "full"


def shrink(config: Config, size: str) -> Config:
    """Fits inputs, batch and schedule to the size; "full" changes nothing.

    "smoke" runs a few steps and checks that the system runs (under a minute on two cores); "cpu" trains
    small towers for some minutes, on any dataset.
    """
    if size == "full":
        return config
    tiny = size == "smoke"
    if tiny and config.data.dataset.startswith("synthetic_cxr"):
        config.data.dataset = "synthetic_cxr/tiny"
    _update(
        config.data,
        dict(
            global_batch_size=8 if tiny else 64,
            max_examples=64 if tiny else None,
            image=dict(size=64 if tiny else 128, resize=None),
            text=dict(
                max_length=48 if tiny else min(96, config.data.text.max_length),
                vocab_size=1024 if tiny else 2048,
                tokenizer=None,
            ),
        ),
    )
    if tiny:
        _update(config.train, dict(steps="6", log_every=1, eval_every="3", save_every="3"))
        _update(config.eval, dict(batch_size=16, bootstrap_samples=50))
        config.optim.warmup = "1"
    else:
        _update(config.train, dict(steps="10ep", log_every=10, eval_every="5ep", save_every="5ep"))
        _update(config.optim, dict(lr=1e-3, warmup="10%", b2=0.98))
    return config


def _update(group: Config, overrides: dict) -> Config:
    """Overwrites existing keys only, so that a typing error in a config stops at once."""
    for key, value in overrides.items():
        if key not in group:
            raise KeyError(f"{key!r} is no key of this group; it has {sorted(group)}")
        if isinstance(group[key], ConfigDict) and isinstance(value, dict | ConfigDict):
            _update(group[key], dict(value))
            continue
        with group.ignore_type():
            group[key] = value
    return group
