"""Vision Transformers for images and for volumes, and learned prompts for the former."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .layers import PreNormBlock, blocks, insert, remove
from .pooling import MapPool


class VisionTransformer(nn.Module):
    """ViT with the options of MAE, CLIP, DINOv2 and SigLIP."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["width"], config["layer_norm_eps"]
        self.pooling, self.out_width, self.token_width = config["pooling"], width, width
        self.patch_embed, count = self._patches(config)
        self.first = int(config["class_token"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.first else None
        self.position_embed = nn.Parameter(torch.zeros(1, self.first + count, width))
        self.registers = config.get("registers", 0)
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, self.registers, width))
        self.pre_norm = nn.LayerNorm(width, eps) if config["pre_layernorm"] else nn.Identity()
        self.blocks = blocks(PreNormBlock, config["depth"], config)
        self.norm = nn.LayerNorm(width, eps)
        self.pooler = nn.Linear(width, width) if self.pooling == "pooler" else None
        if self.pooling == "map":
            self.attention_pool = MapPool(config)

    def _patches(self, config: dict[str, Any]) -> tuple[nn.Module, int]:
        """The embedding of the patches and their number."""
        patch, bias = config["patch_size"], config["patch_bias"]
        conv = nn.Conv2d(config["channels"], config["width"], patch, stride=patch, bias=bias)
        return conv, (config["image_size"] // patch) ** 2

    def forward(self, pixels: Tensor, prompts: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes images.

        Args:
            pixels: [B, C, H, W].
            prompts: [1, M, D], put behind the class token for the blocks only.

        Returns:
            tokens [B, N, D], pooled [B, D], and cls [B, D] if there is a class token.
        """
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        parts = [x + self.position_embed[:, self.first :]]
        if self.registers:
            parts.insert(0, self.register_tokens.expand(x.shape[0], -1, -1))
        if self.cls_token is not None:
            cls = self.cls_token + self.position_embed[:, : self.first]
            parts.insert(0, cls.expand(x.shape[0], -1, -1))
        x = self.pre_norm(torch.cat(parts, dim=1))
        if prompts is not None:
            x = insert(x, prompts, self.first)
        for block in self.blocks.values():
            x = block(x)
        if prompts is not None:
            x = remove(x, self.first, prompts.shape[1])
        x = self.norm(x)
        tokens = x[:, self.first + self.registers :]
        outputs = {"tokens": tokens, "pooled": self._pool(tokens, x[:, 0])}
        if self.cls_token is not None:
            outputs["cls"] = x[:, 0]
        return outputs

    def _pool(self, tokens: Tensor, first: Tensor) -> Tensor:
        if self.pooling == "mean":
            return tokens.mean(1)
        if self.pooling == "map":
            return self.attention_pool(tokens)
        return first if self.pooler is None else torch.tanh(self.pooler(first))


class VolumeTransformer(VisionTransformer):
    """ViT of boxes of voxels: pixels are [B, C, D, H, W]."""

    def _patches(self, config: dict[str, Any]) -> tuple[nn.Module, int]:
        patch, bias = tuple(config["patch_size"]), config["patch_bias"]
        conv = nn.Conv3d(config["channels"], config["width"], patch, stride=patch, bias=bias)
        size = (config["frames"], config["image_size"], config["image_size"])
        return conv, math.prod(n // p for n, p in zip(size, patch, strict=True))


class VisualPrompts(nn.Module):
    """Learned tokens between class token and patches (VPT-shallow)."""

    def __init__(self, tower: VisionTransformer, config: dict[str, Any]):
        super().__init__()
        self.tower, self.out_width, self.token_width = tower, tower.out_width, tower.token_width
        self.prompts = nn.Parameter(torch.zeros(1, config["length"], tower.token_width))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """As the tower."""
        return self.tower(pixels, self.prompts)
