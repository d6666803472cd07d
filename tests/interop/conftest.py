"""Small trained models for the export tests. Without these each file would build its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.data import text
from medvlp_jax.interop.exporting import ImageInput, Trained
from medvlp_jax.models import (
    bert,
    biovil,
    causal_decoder,
    clip_resnet,
    clip_text,
    convnext,
    densenet,
    frames,
    fusion,
    heads,
    multi_image,
    prompt_tuning,
    resnet,
    resnet3d,
    siglip_text,
    swin,
    vit,
    vit3d,
)
from medvlp_jax.models.vision_language import VisionLanguageModel

LENGTH = 16
TEXTS = ["no pleural effusion", "small left pleural effusion with basal atelectasis and edema"]
VOCABULARY = 120

CLIP_TEXT = {**clip_text.VARIANTS["test"], "vocab_size": VOCABULARY, "max_positions": 40}
BERT = {**bert.VARIANTS["test"], "vocab_size": VOCABULARY, "max_positions": 40}
VIT = vit.VARIANTS["test/8"]
CONVNEXT = {**convnext.VARIANTS["test"], "patch_size": 4}
FUSION: dict[str, Any] = dict(width=32, layers=2, heads=2, mlp_dim=64)

MODELS: dict[str, dict[str, Any]] = {
    "clip": dict(image_encoder=vit.Encoder(**{**VIT, "pooling": "pooler"})),
    "bfloat16": dict(
        image_encoder=vit.Encoder(**VIT, dtype=jnp.bfloat16),
        text_encoder=bert.Encoder(**BERT, dtype=jnp.bfloat16),
    ),
    "convirt": dict(
        image_encoder=resnet.Encoder(**resnet.VARIANTS["test"]),
        text_encoder=bert.Encoder(**BERT, pooling="max"),
        image_projection=heads.MLPProjection(24),
        text_projection=heads.MLPProjection(24, hidden=20),
    ),
    "mgca": dict(
        image_encoder=vit.Encoder(**VIT, positions="sincos", qkv_bias=False, patch_bias=False),
        image_projection=heads.BatchNormProjection(24, hidden=40),
        text_projection=heads.BatchNormProjection(24, hidden=40),
        image_token_projection=heads.BatchNormProjection(24, hidden=40),
        text_token_projection=heads.BatchNormProjection(24, hidden=40),
        merge_words=True,
    ),
    "gloria": dict(
        image_encoder=resnet.Encoder(depths=(1, 1, 1, 1), bottleneck=False, stem_width=8),
        text_projection=heads.LinearProjection(24, use_bias=True),
        merge_words=True,
        last_layers=2,
        text_pooling="mean",
    ),
    "medclip": dict(
        image_encoder=vit.Encoder(**VIT, class_token=False, pooling="mean"),
        text_encoder=bert.Encoder(**BERT, pooling="cls", token_types=0, last_attention=True),
        image_projection=None,
        text_projection=heads.LinearProjection(32),
    ),
    "convnext": dict(
        image_encoder=convnext.Encoder(**CONVNEXT, batch_norm=True),
        text_encoder=bert.Encoder(**BERT, position_ids="roberta", padding_idx=0, pooling="mean"),
    ),
    "m3ae": dict(
        image_encoder=vit.Encoder(**VIT, pre_layernorm=True, activation="quick_gelu"),
        fusion=fusion.CoAttention(**FUSION),
    ),
}
"""One model for each branch of the exports: name -> fields that differ from a plain dual encoder."""


VIT3D = {**vit3d.VARIANTS["test"], "patch_size": (2, 8, 8)}
RESNET3D = {**resnet3d.VARIANTS["test"], "shortcut": "padding"}
DECODER = {**causal_decoder.VARIANTS["test"], "vocab_size": VOCABULARY, "max_positions": 20}
SIGLIP_TEXT = {**siglip_text.VARIANTS["test"], "vocab_size": VOCABULARY, "max_positions": 24}
CLIP_RESNET = clip_resnet.VARIANTS["test"]


def _prompts(kind: Any, **options: Any) -> prompt_tuning.TextPrompts:
    """Learned prompts in a small text encoder."""
    return prompt_tuning.TextPrompts(kind(**options), length=3)


TOWERS: dict[str, dict[str, Any]] = {
    "clip resnet": dict(
        image_encoder=clip_resnet.Encoder(**CLIP_RESNET), fusion=fusion.CoAttention(**FUSION)
    ),
    "densenet": dict(image_encoder=densenet.Encoder(**densenet.VARIANTS["test"])),
    "densenet, three blocks": dict(
        image_encoder=densenet.Encoder(depths=(1, 3, 2), growth=4, stem_width=6)
    ),
    "swin, padded windows and shifts": dict(
        image_encoder=swin.Encoder(width=16, depths=(2, 3), heads=(2, 4), window=3)
    ),
    "swin, one window": dict(
        image_encoder=swin.Encoder(width=8, depths=(2, 2), heads=(1, 2), window=4, patch_size=4)
    ),
    "swin, odd grid": dict(
        image_encoder=swin.Encoder(width=8, depths=(1, 2, 1), heads=(1, 2, 2), window=2)
    ),
    "multi_image": dict(
        image_encoder=multi_image.Encoder(**multi_image.VARIANTS["test"]),
        image_projection=biovil.ImageProjection(24),
        text_projection=biovil.TextProjection(24),
    ),
    "frames of vit, mean": dict(image_encoder=frames.Encoder(vit.Encoder(**VIT)), frames=3),
    "frames of swin, max": dict(
        image_encoder=frames.Encoder(
            swin.Encoder(width=8, depths=(2, 1), heads=(1, 2), window=4), pooling="max"
        ),
        frames=2,
    ),
    "frames of sincos vit, attention, fusion": dict(
        image_encoder=frames.Encoder(
            vit.Encoder(**VIT, positions="sincos"), pooling="attention", heads=2
        ),
        fusion=fusion.CoAttention(**FUSION),
        frames=2,
    ),
    "frames of convnext with BatchNorm": dict(
        image_encoder=frames.Encoder(
            convnext.Encoder(**{**convnext.VARIANTS["test"], "patch_size": 4}, batch_norm=True)
        ),
        frames=2,
    ),
    "frames of a prompted vit": dict(
        image_encoder=frames.Encoder(prompt_tuning.VisualPrompts(vit.Encoder(**VIT), length=2)),
        frames=2,
    ),
    "resnet3d": dict(image_encoder=resnet3d.Encoder(**RESNET3D), frames=8),
    "resnet3d, projection": dict(
        image_encoder=resnet3d.Encoder(**{**RESNET3D, "shortcut": "projection"}), frames=5
    ),
    "resnet3d, video": dict(
        image_encoder=resnet3d.Encoder(
            **{**resnet3d.VARIANTS["video-18"], "depths": (1, 2, 1, 1), "stem_width": 4}
        ),
        frames=6,
    ),
    "vit3d": dict(image_encoder=vit3d.Encoder(**VIT3D), frames=6),
    "vit3d, mean": dict(
        image_encoder=vit3d.Encoder(
            **VIT3D, class_token=False, pooling="mean", pre_layernorm=True, layer_scale=0.5
        ),
        frames=4,
    ),
    "visual prompts": dict(
        image_encoder=prompt_tuning.VisualPrompts(
            vit.Encoder(**VIT, registers=2, pre_layernorm=True), length=3
        )
    ),
    "visual prompts without class token": dict(
        image_encoder=prompt_tuning.VisualPrompts(
            vit.Encoder(**{**VIT, "class_token": False, "pooling": "map"}), length=3
        )
    ),
    "siglip text": dict(text_encoder=siglip_text.Encoder(**SIGLIP_TEXT)),
    "siglip text, head, fusion": dict(
        text_encoder=siglip_text.Encoder(**SIGLIP_TEXT, head_dim=20),
        fusion=fusion.CoAttention(**FUSION),
    ),
    "siglip text, mean of the tokens": dict(
        text_encoder=siglip_text.Encoder(**SIGLIP_TEXT, head_dim=20), text_pooling="mean"
    ),
    "bert prompts": dict(
        text_encoder=_prompts(bert.Encoder, **BERT, pooling="max"),
        text_pooling="mean",
        last_layers=2,
    ),
    "roberta prompts": dict(
        text_encoder=_prompts(bert.Encoder, **BERT, position_ids="roberta", padding_idx=3)
    ),
    "clip prompts": dict(
        text_encoder=_prompts(clip_text.Encoder, **CLIP_TEXT),
        fusion=fusion.CoAttention(**FUSION),
    ),
    "siglip prompts": dict(text_encoder=_prompts(siglip_text.Encoder, **SIGLIP_TEXT)),
    "captioner": dict(
        image_encoder=vit.Encoder(**VIT),
        text_encoder=None,
        image_projection=None,
        text_projection=None,
        text_decoder=causal_decoder.Decoder(**DECODER),
    ),
    "captioner beside two encoders": dict(
        image_encoder=densenet.Encoder(**densenet.VARIANTS["test"]),
        context_projection=heads.LinearProjection(32, use_bias=True),
        text_decoder=causal_decoder.Decoder(**DECODER, tied=False, activation="gelu"),
    ),
    "captioner of frames": dict(
        image_encoder=frames.Encoder(vit.Encoder(**VIT)),
        text_encoder=None,
        text_projection=None,
        context_projection=heads.MLPProjection(20),
        text_decoder=causal_decoder.Decoder(**DECODER),
        frames=2,
    ),
}
"""A model for each tower beyond those, and for each of its branches."""


@pytest.fixture(scope="session")
def small_tokenizer() -> text.Tokenizer:
    """A tokenizer of a few words."""
    return text.train_wordpiece(TEXTS * 3, vocab_size=VOCABULARY)


@pytest.fixture(scope="session")
def make_trained(small_tokenizer: text.Tokenizer) -> Callable[..., Trained]:
    """Function: name of `MODELS` or `TOWERS` and fields -> a `Trained` whose weights are random everywhere,
    because initial zeros and ones would hide a bias or scale that got lost."""

    def make(name: str = "clip", **fields: Any) -> Trained:
        fields = {**{**MODELS, **TOWERS}[name], **fields}
        count = fields.pop("frames", 0)
        image = ImageInput(size=32, channels=3, mean=(0.5,), std=(0.25,), frames=count)
        model = VisionLanguageModel(
            **{
                "image_encoder": vit.Encoder(**VIT),
                "text_encoder": bert.Encoder(**BERT),
                "image_projection": heads.LinearProjection(24),
                "text_projection": heads.LinearProjection(24),
                **fields,
            }
        )
        ids = jnp.ones((1, LENGTH), jnp.int32)
        batch = {"image": jnp.zeros((1, *image.shape)), "input_ids": ids, "attention_mask": ids}
        variables = jax.eval_shape(
            lambda: model.init(jax.random.key(0), {**batch, "word_ids": ids})
        )
        rng = np.random.default_rng(0)

        def fill(path: Any, leaf: Any) -> np.ndarray:
            # Convolutions and norms keep the size of what they read: a deep tower would forget its image.
            if path[-1].key == "var":
                return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            convolution = leaf.ndim > 3 and leaf.shape[-1] > 1
            size = (3 / np.prod(leaf.shape[:-1])) ** 0.5 if convolution else 0.3
            centre = 1.0 if path[-1].key == "scale" else 0.0
            return rng.normal(centre, size, leaf.shape).astype(np.float32)

        return Trained(
            model=model,
            params=jax.tree_util.tree_map_with_path(fill, variables["params"]),
            batch_stats=jax.tree_util.tree_map_with_path(fill, variables.get("batch_stats", {})),
            tokenizer=small_tokenizer,
            image=image,
            max_length=LENGTH,
            logit_scale=12.5,
            card="# card\n",
        )

    return make


@pytest.fixture(params=sorted(MODELS))
def any_trained(request: pytest.FixtureRequest, make_trained: Callable[..., Trained]) -> Trained:
    """Each of `MODELS`."""
    return make_trained(request.param)


@pytest.fixture(params=sorted(TOWERS))
def any_tower(request: pytest.FixtureRequest, make_trained: Callable[..., Trained]) -> Trained:
    """Each of `TOWERS`."""
    return make_trained(request.param)


@pytest.fixture(scope="session")
def usage_code() -> Callable[[str], str]:
    """Function: a `USAGE` text -> the Python code in it."""

    def code(usage: str) -> str:
        return usage.partition("```python\n")[2].partition("```")[0]

    return code
