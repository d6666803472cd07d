"""Projections of BioViL (arXiv 2204.09817) and BioViL-T (2301.04558) to the space that both sides share.

They read the released weights: the projector of the image model, and the head that CXR-BERT-specialized has
on its first token. A config names them as `biovil.ImageProjection` and `biovil.TextProjection`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.models import layers
from medvlp_jax.types import Array

_IMAGE_RULES: list[tuple[str, str, str]] = [
    (r"fc1/kernel", "model.0.weight", "conv"),
    (r"norm/scale", "model.1.weight", "copy"),
    (r"norm/bias", "model.1.bias", "copy"),
    (r"norm/mean", "model.1.running_mean", "copy"),
    (r"norm/var", "model.1.running_var", "copy"),
    (r"fc2/kernel", "model.3.weight", "conv"),
    (r"fc2/bias", "model.3.bias", "copy"),
]
_TEXT_RULES: list[tuple[str, str, str]] = [
    (r"fc1/kernel", "dense_to_hidden.weight", "linear"),
    (r"fc1/bias", "dense_to_hidden.bias", "copy"),
    (r"norm/scale", "LayerNorm.weight", "copy"),
    (r"norm/bias", "LayerNorm.bias", "copy"),
    (r"fc2/kernel", "dense_to_output.weight", "linear"),
    (r"fc2/bias", "dense_to_output.bias", "copy"),
]

SOURCES: dict[str, list[tuple[str, str, str]]] = {
    "projector of BioViL's image model": _IMAGE_RULES,
    "projection head of CXR-BERT-specialized": _TEXT_RULES,
}
"""Names in the released files, below `projector.` and `cls_projection_head.`; see `vit.TORCH_RULES`."""


class ImageProjection(nn.Module):
    """1x1 convolution without bias, BatchNorm, ReLU, 1x1 convolution.

    Fields:
        features: width of the shared space and of the hidden layer, 128 as published.
        dtype: compute dtype; parameters and statistics are float32.
    """

    features: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps [B, D] or tokens [B, N, D] to `features`; `train` uses and updates batch statistics."""
        shape = x.shape[:-1]
        x = x.reshape(shape[0], -1, 1, x.shape[-1])
        x = nn.Conv(self.features, (1, 1), use_bias=False, dtype=self.dtype, name="fc1")(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="fc2")(x)
        return x.reshape(*shape, self.features)


class TextProjection(nn.Module):
    """Linear, GELU, LayerNorm, linear, on the first token (so the text encoder has `pooling="cls"`).

    Fields:
        features: width of the shared space and of the hidden layer, 128 as published.
        dtype: compute dtype; parameters are float32.
    """

    features: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps [..., D] to [..., features]; `train` changes nothing."""
        del train
        x = layers.gelu(layers.Dense(self.features, dtype=self.dtype, name="fc1")(x))
        x = layers.LayerNorm(1e-12, self.dtype, name="norm")(x)
        return layers.Dense(self.features, dtype=self.dtype, name="fc2")(x)
