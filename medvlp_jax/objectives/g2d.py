"""Global contrast and pseudo-segmentation from one attention pool (G2D, arXiv 2312.01522)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import pseudo_segmentation as loss_lib
from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.models.layers import Dense, MultiHeadAttention, l2_normalize
from medvlp_jax.models.unet_decoder import UnetDecoder
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.types import Array, Metrics, Outputs


class G2d(Objective):
    """L = ITC(attention-pooled image, text) + Dice and BCE of a decoder against where that pool looks.

    Needs `model.image_token_projection` of the width of `text_embed`. Decoder and pool are its own.

    Fields:
        temperature: of the contrast, fixed.
        heads: of the pool; its attention is averaged over them.
        quantile: share of the pixels that the mask leaves out.
        segmentation_weight: of the second term.
        body_share, radius: of the body mask and the filter, see `losses.pseudo_segmentation`; the variant
            "released" has neither.
        channels: of the decoder.
    """

    temperature: float = 0.07
    heads: int = 4
    quantile: float = 0.85
    segmentation_weight: float = 1.0
    body_share: float = 0.1
    radius: int = 2
    channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    variant: str = "paper"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: contrast, segmentation."""
        (clean,) = passes
        require_choice(self.variant, ("paper", "released"), "g2d variant")
        remedy = "set model.image_token_projection"
        require(clean.outputs, ("image_token_embed", "image_hidden"), "g2d", remedy)
        tokens, text = clean.outputs["image_token_embed"], clean.outputs["text_embed"]
        if tokens.shape[-1] != text.shape[-1]:
            raise UserError(
                f"g2d compares image tokens of width {tokens.shape[-1]} with texts of {text.shape[-1]}: give "
                "model.image_token_projection and model.text_projection the same features"
            )
        maps = _maps(clean.outputs)
        pooled, attention = self._pool(tokens, train)
        mask = clean.batch.get("example_mask")
        contrast = info_nce(l2_normalize(pooled), text, 1 / self.temperature, example_mask=mask)
        image = clean.batch["image"]
        size = image.shape[1:3]
        released = self.variant == "released"
        targets = loss_lib.pseudo_mask(
            attention.reshape(-1, *maps[-1].shape[1:3]),
            size,
            quantile=self.quantile,
            body=None if released else loss_lib.body_mask(image, share=self.body_share),
            radius=0 if released else self.radius,
        )
        logits = UnetDecoder(self.channels, dtype=self.dtype, name="decoder")(
            maps, size, train=train
        )
        segmentation = loss_lib.pseudo_segmentation(
            logits[..., 0],
            targets,
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=mask,
        )
        loss = contrast + self.segmentation_weight * segmentation
        return loss, {"contrast": contrast, "segmentation": segmentation}

    def _pool(self, tokens: Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """CLIP's attention pool (arXiv 2103.00020, section 2.3): image [B,D], where it looks [B,N]."""
        mean = tokens.mean(axis=1, keepdims=True)
        x = jnp.concatenate([mean, tokens], axis=1).astype(self.dtype)
        width = x.shape[-1]
        places = self.param("position_embed", nn.initializers.normal(width**-0.5), x.shape[1:])
        x = x + places.astype(self.dtype)
        attend = MultiHeadAttention(self.heads, dtype=self.dtype, name="pool")
        pooled, probs = attend(x[:, :1], x, train=train, need_probs=True)
        pooled = Dense(width, dtype=self.dtype, name="pool_projection")(pooled[:, 0])
        return jnp.asarray(pooled), jnp.asarray(probs)[:, :, 0, 1:].mean(axis=1)


def _maps(outputs: Outputs) -> tuple[Array, ...]:
    """Maps of the image encoder, finest first: those of a ResNet, or the grid of a ViT's last tokens."""
    hidden = outputs["image_hidden"]
    if hidden[-1].ndim == 4:
        return tuple(hidden)
    tokens = outputs["image_tokens"]
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise UserError(
            f"g2d: {tokens.shape[1]} image tokens form no square grid; use square images"
        )
    return (tokens.reshape(tokens.shape[0], side, side, -1),)
