"""The model: image encoder, text encoder, projections to a shared space and, optionally, a fusion encoder."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, pooling
from medvlp_jax.types import Array, Batch, Outputs

_IMAGE_INPUTS = {
    "prior_image": "prior_image",
    "prior_mask": "prior_mask",
    "image_present": "frame_mask",
}
"""Batch key -> argument of the image encoders that read it."""


class VisionLanguageModel(nn.Module):
    """Dual encoder, or with `fusion` a fusion encoder, assembled from modules.

    Fields:
        image_encoder: as `vit.Encoder` or `resnet.Encoder`; text_encoder: as `bert.Encoder`.
        image_projection, text_projection: heads of `models.heads` on the pooled outputs; None embeds the
            pooled output itself.
        image_token_projection, text_token_projection: heads on the tokens; None leaves out
            `image_token_embed` / `text_token_embed`.
        image_pooling: "encoder" = the image encoder's own, before the projection; "projected_mean" =
            `image_projection` projects each token, `image_embed` is the mean of these and `image_token_embed`
            they themselves (BioViL), so there is no `image_token_projection`.
        merge_words: sum word pieces into words (GLoRIA, MGCA) before the token projection; special tokens
            are left out.
        last_layers: text tokens are the sum of this many last hidden states (GLoRIA: 4).
        text_pooling: "encoder" = the text encoder's own; "mean" = mean over the text tokens after
            `last_layers` and `merge_words` (GLoRIA).
        fusion: as `fusion.CoAttention`, or None.
        text_decoder: as `causal_decoder.Decoder` with cross-attention to the image, or None.
        context_projection: head on the image states that the decoder reads, None = as they are.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module | None = None
    image_projection: nn.Module | None = None
    text_projection: nn.Module | None = None
    image_token_projection: nn.Module | None = None
    text_token_projection: nn.Module | None = None
    image_pooling: Literal["encoder", "projected_mean"] = "encoder"
    merge_words: bool = False
    last_layers: int = 1
    text_pooling: Literal["encoder", "mean"] = "encoder"
    fusion: nn.Module | None = None
    text_decoder: nn.Module | None = None
    context_projection: nn.Module | None = None

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """Encodes both sides and, where the model has the parts, fuses and decodes; see the methods."""
        outputs = self.encode_image(batch, train=train)
        outputs.update(self.encode_text(batch, train=train))
        outputs.update(self.join(outputs, batch, train=train))
        return outputs

    def join(self, encoded: Outputs, batch: Batch, *, train: bool = False) -> Outputs:
        """Outputs of the parts that read both sides: `fuse` and `decode`, {} without such parts."""
        outputs: Outputs = {}
        if self.fusion is not None:
            outputs.update(self.fuse(encoded, encoded, batch, train=train))
        if self.text_decoder is not None:
            outputs.update(self.decode(encoded, batch, train=train))
        return outputs

    def encode_image(self, batch: Batch, *, train: bool = False) -> Outputs:
        """Encodes `image` [B, H, W, C] (floats), only the patches of `image_keep_ids` if the batch has them.

        Towers of several images also get `prior_image` and `prior_mask` (BioViL-T), those of frames
        `image_present`, where the batch has them; volumes and clips are [B, T, H, W, C].

        Returns:
            image_pooled [B, Di], image_tokens [B, N, Di], image_hidden (see the encoder), image_cls [B, Di]
            and image_attention where the encoder returns them, image_embed [B, D] float32 of length 1, and
            image_token_embed [B, N, D] if there is a token projection or with "projected_mean".

        Raises:
            UserError: an unknown `image_pooling`, or "projected_mean" with other projections than it takes.
        """
        further = {name: batch[key] for key, name in _IMAGE_INPUTS.items() if key in batch}
        encoded = self.image_encoder(
            batch["image"], keep_ids=batch.get("image_keep_ids"), train=train, **further
        )
        outputs = {f"image_{key}": value for key, value in encoded.items()}
        if self.image_pooling == "projected_mean":
            outputs.update(self._projected_mean(encoded["tokens"], train))
            return outputs
        if self.image_pooling != "encoder":
            raise UserError(
                f"image_pooling={self.image_pooling!r} is unknown; choose encoder or projected_mean"
            )
        outputs["image_embed"] = _embed(self.image_projection, encoded["pooled"], train)
        if self.image_token_projection is not None:
            outputs["image_token_embed"] = self.image_token_projection(
                encoded["tokens"], train=train
            )
        return outputs

    def encode_text(self, batch: Batch, *, train: bool = False) -> Outputs:
        """Encodes `input_ids` and `attention_mask` [B, L] (and `word_ids` [B, L] to merge words).

        Returns:
            text_pooled [B, Dt]; text_tokens [B, L, Dt] (words when merged); text_token_mask [B, L] float32;
            text_states [B, L, Dt], the last layer's states of the pieces, which is what fusion reads;
            text_hidden; text_attention where the encoder returns it (of pieces); text_embed [B, D] float32
            of length 1; text_token_embed [B, L, D] if there is a token projection. {} without text encoder.
        """
        if self.text_encoder is None:
            return {}
        encoded = self.text_encoder(batch["input_ids"], batch["attention_mask"], train=train)
        outputs = {f"text_{key}": value for key, value in encoded.items()}
        outputs["text_states"] = encoded["tokens"]
        tokens, mask = self._text_tokens(encoded, batch)
        if self.text_pooling == "mean":
            outputs["text_pooled"] = pooling.masked_mean(tokens, mask)
        elif self.text_pooling != "encoder":
            raise UserError(
                f"text_pooling={self.text_pooling!r} is unknown; choose encoder or mean"
            )
        outputs["text_tokens"], outputs["text_token_mask"] = tokens, mask
        outputs["text_embed"] = _embed(self.text_projection, outputs["text_pooled"], train)
        if self.text_token_projection is not None:
            outputs["text_token_embed"] = self.text_token_projection(tokens, train=train)
        return outputs

    def fuse(self, image: Outputs, text: Outputs, batch: Batch, *, train: bool = False) -> Outputs:
        """Runs the fusion encoder on what the two encode methods returned.

        Args:
            image: needs image_tokens, and image_cls if there is a class token, which is put first.
            text: needs text_states.
            batch: needs `attention_mask` [B, L] of the text.

        Returns:
            The fused_* outputs of the fusion encoder.
        """
        if self.fusion is None:
            raise UserError(
                "this model has no fusion encoder, but an objective or task asks for fused outputs; "
                "set config.model.fusion"
            )
        states, mask = image_states(image), batch["attention_mask"]
        return self.fusion(states, None, text["text_states"], mask, train=train)

    def decode(self, image: Outputs, batch: Batch, *, train: bool = False) -> Outputs:
        """Predicts each next token of the text from the image and the tokens before it.

        Args:
            image: needs image_tokens, and image_cls if there is a class token, which is put first.
            batch: needs `input_ids` and `attention_mask` [B, L].

        Returns:
            decoder_logits [B, L, V], where position i scores the token at i + 1; decoder_tokens [B, L, D];
            decoder_hidden; decoder_attention over the image where the decoder returns it.
        """
        if self.text_decoder is None:
            raise UserError(
                "this model has no text decoder, but an objective or task asks for its predictions; set "
                "config.model.text_decoder"
            )
        context = image_states(image)
        if self.context_projection is not None:
            context = self.context_projection(context, train=train)
        decoded = self.text_decoder(
            batch["input_ids"], batch["attention_mask"], context, train=train
        )
        return {f"decoder_{key}": value for key, value in decoded.items()}

    def _projected_mean(self, tokens: Array, train: bool) -> Outputs:
        """image_token_embed [B, N, D] of tokens [B, N, Di], and image_embed [B, D], their mean."""
        if self.image_projection is None or self.image_token_projection is not None:
            raise UserError(
                "image_pooling='projected_mean' takes model.image_projection for the tokens too: set it and "
                "leave model.image_token_projection out"
            )
        projected = self.image_projection(tokens, train=train)
        mean = jnp.mean(projected.astype(jnp.float32), axis=1)
        return {"image_embed": layers.l2_normalize(mean), "image_token_embed": projected}

    def _text_tokens(self, encoded: Outputs, batch: Batch) -> tuple[Array, Array]:
        tokens = encoded["tokens"]
        if self.last_layers > 1:
            tokens = pooling.sum_last_layers(encoded["hidden"], self.last_layers)
        if not self.merge_words:
            return tokens, (batch["attention_mask"] != 0).astype(jnp.float32)
        if "word_ids" not in batch:
            raise UserError(
                "merge_words=True needs the batch key `word_ids`; use a tokenizer that gives word ids or "
                "set merge_words=False"
            )
        return pooling.merge_word_pieces(tokens, batch["word_ids"])


def innermost(encoder: Any) -> Any:
    """The tower inside of wrappers such as `frames.Encoder` and `prompt_tuning.TextPrompts`."""
    while hasattr(encoder, "tower"):
        encoder = encoder.tower
    return encoder


def image_states(image: Outputs) -> Array:
    """All states of the image encoder [B, (1 +) N, Di]: the class token, if there is one, then the tokens."""
    tokens = image["image_tokens"]
    if "image_cls" not in image:
        return tokens
    return jnp.concatenate([image["image_cls"][:, None], tokens], axis=1)


def _embed(projection: nn.Module | None, pooled: Array, train: bool) -> Array:
    return layers.l2_normalize(pooled if projection is None else projection(pooled, train=train))
