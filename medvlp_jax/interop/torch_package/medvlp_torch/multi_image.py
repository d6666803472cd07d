"""BioViL-T's image encoder: a ResNet, and what changed since the prior image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Attention, Mlp, blocks
from .resnet import ResNet, flat

EPS = 1e-6


class ComparingBlock(nn.Module):
    """Pre-LN block whose attention sees LayerNorm(x) + position."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = Attention(width, heads, bias=False)
        self.mlp = Mlp(width, width, width, "gelu")

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        x = x + self.attention(self.norm1(x) + position)
        return x + self.mlp(self.norm2(x))


class MultiImage(nn.Module):
    """Features of the image beside those of its comparison with a prior image."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, heads = config["width"], config["heads"]
        self.backbone = ResNet(config)
        self.reduce = nn.Conv2d(self.backbone.out_width, width, 1, bias=False)
        self.missing_prior = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.image_embed = nn.Parameter(torch.zeros(2, 1, width))
        self.blocks = blocks(ComparingBlock, config["depth"], width, heads)
        self.norm = nn.LayerNorm(width, EPS)
        self.out_width = self.token_width = 2 * width

    def forward(
        self,
        pixels: Tensor,
        prior_pixels: Tensor | None = None,
        prior_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encodes images.

        Args:
            pixels: [B, C, H, W].
            prior_pixels: as pixels, an earlier image of the same patient; None = there is none.
            prior_mask: [B], nonzero where prior_pixels holds one; None = everywhere.

        Returns:
            tokens [B, N, 2 D] row by row: first half the image, second half what changed; pooled [B, 2 D].
        """
        x = self.reduce(self.backbone.maps(pixels)[-1])
        static = flat(x)
        difference = self.missing_prior.flatten().expand_as(static)
        if prior_pixels is not None:
            if prior_mask is None:
                prior_mask = torch.ones(len(pixels), device=pixels.device)
            known = prior_mask != 0
            prior_pixels = torch.where(known[:, None, None, None], prior_pixels, pixels)
            prior = flat(self.reduce(self.backbone.maps(prior_pixels)[-1]))
            compared = self._compare(static, prior, (x.shape[2], x.shape[3]))
            difference = torch.where(known[:, None, None], compared, difference)
        tokens = torch.cat([static, difference], dim=-1)
        return {"tokens": tokens, "pooled": tokens.mean(1)}

    def _compare(self, static: Tensor, prior: Tensor, grid: tuple[int, int]) -> Tensor:
        places = sine_positions(static.shape[-1], grid).to(static)
        position = (self.image_embed + places).flatten(0, 1)
        x = torch.cat([static, prior], dim=1)
        for block in self.blocks.values():
            x = block(x, position)
        return self.norm(x[:, : static.shape[1]])


def sine_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions of DETR [h * w, width]: first half the row, second the column, sines and cosines
    alternating."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    indices = torch.meshgrid(*(torch.arange(1, n + 1) for n in grid), indexing="ij")
    halves = []
    for index, length in zip(indices, grid, strict=True):
        angle = 2 * math.pi * index.reshape(-1, 1) / length * omega
        halves.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1))
    return torch.cat(halves, dim=1)
