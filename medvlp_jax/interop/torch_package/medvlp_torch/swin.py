"""Swin Transformer. Maps are [B, h, w, C]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Mlp

EPS = 1e-5  # of every LayerNorm


def windows(x: Tensor, side: int) -> Tensor:
    """Cuts a map [B, h, w, C] into windows [B, M, side * side, C]; h and w are multiples of side."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def unwindow(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    x = x.unflatten(2, (side, side)).unflatten(1, (height // side, width // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_positions(side: int) -> Tensor:
    """Row of the bias table for query i and key j of a window -> int [side * side, side * side]."""
    place = torch.arange(side)
    rows, columns = (x.flatten() for x in torch.meshgrid(place, place, indexing="ij"))
    dy, dx = (x[:, None] - x[None, :] + side - 1 for x in (rows, columns))
    return dy * (2 * side - 1) + dx


def shifted_mask(height: int, width: int, side: int, shift: int) -> Tensor:
    """Which pairs of a window were neighbours before the shift -> bool [M, side * side, side * side]."""
    y, x = torch.arange(height) >= height - shift, torch.arange(width) >= width - shift
    region = windows((2 * y[:, None].int() + x[None, :].int())[None, :, :, None], side)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned bias per relative position."""

    pairs: Tensor

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("pairs", relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Maps [B, M, S, C] to the same shape; mask: bool [M, S, S], None = all pairs."""
        bias = self.position_bias[self.pairs].permute(2, 0, 1)[None].expand(x.shape[1], -1, -1, -1)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None], float("-inf"))
        q, k, v = (self._split(f(x)) for f in (self.query, self.key, self.value))
        # Windows and heads share an axis, so that one bias serves all rows of the batch.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1)[None])
        y = y.unflatten(1, (-1, self.heads)).transpose(2, 3).flatten(3)
        return self.out(y)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(1, 2)


class SwinBlock(nn.Module):
    """x + f(LayerNorm(x)), attention inside windows then feed-forward; every second block shifts windows."""

    def __init__(self, width: int, heads: int, window: int, odd: bool):
        super().__init__()
        self.window, self.odd = window, odd
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = WindowAttention(width, heads, window)
        self.mlp = Mlp(width, 4 * width, width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        side, (height, width) = self.window, x.shape[1:3]
        # Zeros fill the map up to whole windows, and are attended to.
        y = F.pad(self.norm1(x), (0, 0, 0, -width % side, 0, -height % side))
        full, mask = y.shape[1:3], None
        shift = side // 2 if self.odd and min(height, width) > side else 0
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
            mask = shifted_mask(full[0], full[1], side, shift).to(x.device)
        y = unwindow(self.attention(windows(y, side), mask), side, full[0], full[1])
        if shift:
            y = y.roll((shift, shift), (1, 2))
        x = x + y[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Swin Transformer."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.patch_embed = nn.Conv2d(config["channels"], width, patch, stride=patch)
        self.patch_norm = nn.LayerNorm(width, EPS)
        self.blocks = nn.ModuleDict()
        for stage, depth in enumerate(config["depths"]):
            if stage:
                self.blocks[f"stage_{stage - 1}_merge_norm"] = nn.LayerNorm(4 * width, EPS)
                self.blocks[f"stage_{stage - 1}_merge"] = nn.Linear(
                    4 * width, 2 * width, bias=False
                )
                width *= 2
            for i in range(depth):
                block = SwinBlock(width, config["heads"][stage], config["window"], i % 2 == 1)
                self.blocks[f"stage_{stage}_block_{i}"] = block
        self.norm = nn.LayerNorm(width, EPS)
        self.out_width = self.token_width = width

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the last stage row by row, pooled [B, D]."""
        x = self.patch_norm(self.patch_embed(pixels).permute(0, 2, 3, 1))
        for name, block in self.blocks.items():
            x = block(neighbours(x) if name.endswith("_merge_norm") else x)
        x = self.norm(x).flatten(1, 2)
        return {"tokens": x, "pooled": x.mean(1)}


def neighbours(x: Tensor) -> Tensor:
    """2x2 neighbours as one position, column by column: [B, h, w, C] -> [B, h/2, w/2, 4 C], zeros at the end
    of an odd side."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, i::2, j::2] for j in range(2) for i in range(2)], dim=-1)
