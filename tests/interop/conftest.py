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
from medvlp_jax.models import bert, convnext, fusion, heads, resnet, vit
from medvlp_jax.models.vision_language import VisionLanguageModel

LENGTH = 16
TEXTS = ["no pleural effusion", "small left pleural effusion with basal atelectasis and edema"]
VOCABULARY = 120

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


@pytest.fixture(scope="session")
def small_tokenizer() -> text.Tokenizer:
    """A tokenizer of a few words."""
    return text.train_wordpiece(TEXTS * 3, vocab_size=VOCABULARY)


@pytest.fixture(scope="session")
def make_trained(small_tokenizer: text.Tokenizer) -> Callable[..., Trained]:
    """Function: name of `MODELS` and fields -> a `Trained` whose weights are random everywhere, because
    initial zeros and ones would hide a bias or scale that got lost."""

    def make(name: str = "clip", **fields: Any) -> Trained:
        model = VisionLanguageModel(
            **{
                "image_encoder": vit.Encoder(**VIT),
                "text_encoder": bert.Encoder(**BERT),
                "image_projection": heads.LinearProjection(24),
                "text_projection": heads.LinearProjection(24),
                **MODELS[name],
                **fields,
            }
        )
        ids = jnp.ones((1, LENGTH), jnp.int32)
        batch = {"image": jnp.zeros((1, 32, 32, 3)), "input_ids": ids, "attention_mask": ids}
        variables = jax.eval_shape(
            lambda: model.init(jax.random.key(0), {**batch, "word_ids": ids})
        )
        rng = np.random.default_rng(0)
        leaves, tree = jax.tree.flatten(variables["params"])
        params = [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
        return Trained(
            model=model,
            params=tree.unflatten(params),
            batch_stats=jax.tree.map(
                lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32),
                variables.get("batch_stats", {}),
            ),
            tokenizer=small_tokenizer,
            image=ImageInput(size=32, channels=3, mean=(0.5,), std=(0.25,)),
            max_length=LENGTH,
            logit_scale=12.5,
            card="# card\n",
        )

    return make


@pytest.fixture(params=sorted(MODELS))
def any_trained(request: pytest.FixtureRequest, make_trained: Callable[..., Trained]) -> Trained:
    """Each of `MODELS`."""
    return make_trained(request.param)


@pytest.fixture(scope="session")
def usage_code() -> Callable[[str], str]:
    """Function: a `USAGE` text -> the Python code in it."""

    def code(usage: str) -> str:
        return usage.partition("```python\n")[2].partition("```")[0]

    return code
