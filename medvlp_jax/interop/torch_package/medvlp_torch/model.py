"""The whole model, built from the entry `model` of a manifest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convnext import ConvNeXt
from .decoder import CausalDecoder
from .densenet import DenseNet
from .frames import Frames
from .fusion import CoAttention
from .heads import BatchNormHead, BiovilImageHead, BiovilTextHead, LinearHead, MlpHead
from .multi_image import MultiImage
from .pooling import masked_mean, merge_word_pieces
from .resnet import ClipResNet, ResNet, VolumeResNet
from .swin import Swin
from .text import Bert, ClipText, SiglipText, TextPrompts
from .vit import VisionTransformer, VisualPrompts, VolumeTransformer

TOWERS: dict[str, Any] = {
    "vit": VisionTransformer,
    "resnet": ResNet,
    "convnext": ConvNeXt,
    "swin": Swin,
    "densenet": DenseNet,
    "clip_resnet": ClipResNet,
    "multi_image": MultiImage,
    "frames": Frames,
    "resnet3d": VolumeResNet,
    "vit3d": VolumeTransformer,
    "prompt_tuning.VisualPrompts": VisualPrompts,
    "bert": Bert,
    "clip_text": ClipText,
    "siglip_text": SiglipText,
    "prompt_tuning.TextPrompts": TextPrompts,
}
HEADS: dict[str, Any] = {
    "heads.Identity": nn.Identity,
    "heads.LinearProjection": LinearHead,
    "heads.MLPProjection": MlpHead,
    "heads.BatchNormProjection": BatchNormHead,
    "biovil.ImageProjection": BiovilImageHead,
    "biovil.TextProjection": BiovilTextHead,
}


def make_tower(config: dict[str, Any]) -> Any:
    """An encoder, or one around another encoder, its `tower`."""
    kind = TOWERS[config["name"]]
    return kind(make_tower(config["tower"]), config) if "tower" in config else kind(config)


def make_head(width: int, config: dict[str, Any] | None) -> nn.Module:
    """A projection from `width` features; none leaves them as they are."""
    return nn.Identity() if config is None else HEADS[config["name"]](width, config)


class VisionLanguageModel(nn.Module):
    """Encoders, projections to the shared space and, where trained, a fusion encoder or a text decoder.

    Attributes:
        logit_scale: factor of the cosine of two embeddings.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        text, fusion, decoder = (config[k] for k in ("text_encoder", "fusion", "text_decoder"))
        self.image_encoder = make_tower(config["image_encoder"])
        states = self.image_encoder.token_width
        # Exports of earlier versions do not name it.
        self.image_pooling = config.get("image_pooling", "encoder")
        tokens = self.image_pooling == "projected_mean"
        width = states if tokens else self.image_encoder.out_width
        self.image_projection = make_head(width, config["image_projection"])
        self.text_pooling, self.last_layers = config["text_pooling"], config["last_layers"]
        self.merge_words = config["merge_words"]
        self.logit_scale: float = config["logit_scale"]
        self.text_encoder = self.fusion = self.text_decoder = None
        if text:
            self.text_encoder = make_tower(text)
            mean = self.text_pooling == "mean"
            width = self.text_encoder.token_width if mean else self.text_encoder.out_width
            self.text_projection = make_head(width, config["text_projection"])
            if fusion:
                self.fusion = CoAttention(states, self.text_encoder.token_width, fusion)
        if decoder:
            head = config["context_projection"]
            self.context_projection = make_head(states, head)
            self.text_decoder = CausalDecoder(decoder, head["features"] if head else states)

    def encode_image(self, pixels: Tensor, **further: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1.

        Args:
            pixels: normalised images [B, C, H, W], volumes [B, C, D, H, W] or frames [B, T, C, H, W].
            further: optional inputs of some encoders, which `manifest.json` lists: `frame_mask` [B, T],
                nonzero for real frames; `prior_pixels`, an earlier image of the same patient, and
                `prior_mask` [B], nonzero where there is one.
        """
        encoded = self.image_encoder(pixels, **further)
        if self.image_pooling == "projected_mean":
            embed = self.image_projection(encoded["tokens"]).mean(1)
        else:
            embed = self.image_projection(encoded["pooled"])
        return F.normalize(embed, dim=-1, eps=1e-6)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, word_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids and mask [B, L] -> embeddings [B, D] of length 1.

        word_ids [B, L] (the word a token belongs to, -1 for special tokens and padding) is needed only by a
        model that pools words (`manifest.json` lists the inputs).
        """
        if self.text_encoder is None:
            raise ValueError("this model has no text encoder")
        encoded = self.text_encoder(input_ids, attention_mask)
        pooled = encoded["pooled"]
        if self.text_pooling == "mean":
            states, mask = encoded["tokens"], attention_mask
            if self.last_layers > 1:
                states = torch.stack(encoded["hidden"][-self.last_layers :]).sum(0)
            if self.merge_words:
                if word_ids is None:
                    raise ValueError("this model pools words: give word_ids")
                states, mask = merge_word_pieces(states, word_ids)
            pooled = masked_mean(states, mask)
        return F.normalize(self.text_projection(pooled), dim=-1, eps=1e-6)

    def image_states(self, pixels: Tensor, **further: Tensor) -> Tensor:
        """All states of the image encoder [B, N, D], class token first; inputs as for `encode_image`."""
        image = self.image_encoder(pixels, **further)
        tokens = image["tokens"]
        return torch.cat([image["cls"][:, None], tokens], dim=1) if "cls" in image else tokens

    def fuse(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, **further: Tensor
    ) -> dict[str, Tensor]:
        """Joint states of pairs: image_tokens [B, N, D], text_tokens [B, L, D], pooled [B, 2D]."""
        if self.text_encoder is None or self.fusion is None:
            raise ValueError("this model has no fusion encoder")
        states = self.text_encoder(input_ids, attention_mask)["tokens"]
        return self.fusion(self.image_states(pixels, **further), states, attention_mask)

    def decode(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, **further: Tensor
    ) -> Tensor:
        """Logits [B, L, V] of captions [B, L] of the images: position i scores the token at i + 1."""
        if self.text_decoder is None:
            raise ValueError("this model has no text decoder")
        context = self.context_projection(self.image_states(pixels, **further))
        return self.text_decoder(input_ids, attention_mask, context)

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [images, texts]: scaled cosines of the embeddings."""
        texts = self.encode_text(input_ids, attention_mask, word_ids)
        return self.logit_scale * self.encode_image(pixels) @ texts.T
