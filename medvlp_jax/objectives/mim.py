"""Masked image modelling (MAE, arXiv 2111.06377), conditioned on the text in a fusion encoder (M3AE)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.masked import masked_image, patchify
from medvlp_jax.models.heads import MaskedImageDecoder
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Corruption, MaskImage
from medvlp_jax.types import Array, Metrics, Outputs


class Mim(Objective):
    """Predicts the pixels of removed patches from the visible ones.

    Fields:
        ratio: share of the patches that is removed before the encoder runs.
        patch_size: of the image encoder (filled in by the builder).
        layer: the decoder reads the input of this fusion layer (M3AE: 3, so after three layers); without
            a fusion encoder it reads the image encoder's output.
        normalise: predict patches normalised to mean 0 and variance 1.
        width, depth, heads: of the decoder.
        activation, layer_norm_eps: of its blocks (M3AE's are CLIP's).
    """

    ratio: float = 0.75
    patch_size: int = 16
    layer: int = 3
    normalise: bool = True
    width: int = 384
    depth: int = 4
    heads: int = 6
    activation: str = "gelu"
    layer_norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    def corruptions(self) -> tuple[Corruption, ...]:
        """Removed patches, text untouched."""
        return (MaskImage(ratio=self.ratio, patch_size=self.patch_size),)

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        (masked,) = passes
        batch = masked.batch
        visible = batch["image_keep_ids"].shape[1]
        tokens = self._tokens(masked.outputs)
        pixels = batch["image"]
        decoder = MaskedImageDecoder(
            patch_size=self.patch_size,
            channels=pixels.shape[-1],
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            class_token=tokens.shape[1] == visible + 1,
            activation=self.activation,
            layer_norm_eps=self.layer_norm_eps,
            dtype=self.dtype,
            name="decoder",
        )
        prediction = decoder(tokens, batch["image_restore_ids"], train=train)
        loss = masked_image(
            prediction,
            patchify(pixels, self.patch_size),
            batch["image_mask"],
            normalise=self.normalise,
            example_mask=batch.get("example_mask"),
        )
        return loss, {}

    def _tokens(self, outputs: Outputs) -> Array:
        """Visible tokens [B,(1+)Nk,D] that the decoder reads, class token first."""
        if "fused_image_layers" in outputs:
            layers = outputs["fused_image_layers"]
            if not 0 <= self.layer < len(layers):
                raise UserError(
                    f"config key objectives.mim.layer={self.layer}: the fusion encoder has "
                    f"{len(layers) - 1} layers, so 0 to {len(layers) - 1}"
                )
            return layers[self.layer]
        tokens = outputs["image_tokens"]
        if "image_cls" not in outputs:
            return tokens
        return jnp.concatenate([outputs["image_cls"][:, None], tokens], axis=1)
