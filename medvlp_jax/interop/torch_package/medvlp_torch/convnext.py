"""ConvNeXt."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolve_last(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution on [B, h, w, C]."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, linear, GELU, linear, layer scale, on [B, h, w, C]."""

    def __init__(self, width: int, scaled: bool):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        y = self.fc2(F.gelu(self.fc1(self.norm(convolve_last(self.depthwise, x)))))
        return x + (y if self.layer_scale is None else y * self.layer_scale)


class ConvNeXt(nn.Module):
    """ConvNeXt; a BatchNorm of the training is already part of the weights."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        sizes, patch = config["hidden_sizes"], config["patch_size"]
        self.out_width = self.token_width = sizes[-1]
        self.stem = nn.Conv2d(config["channels"], sizes[0], patch, stride=patch)
        self.stem_norm = nn.LayerNorm(sizes[0], 1e-6)
        self.blocks = nn.ModuleDict()
        for stage, (width, depth) in enumerate(zip(sizes, config["depths"], strict=True)):
            if stage:
                self.blocks[f"down_{stage}_norm"] = nn.LayerNorm(sizes[stage - 1], 1e-6)
                self.blocks[f"down_{stage}"] = nn.Conv2d(sizes[stage - 1], width, 2, stride=2)
            for i in range(depth):
                self.blocks[f"stage_{stage}_block_{i}"] = ConvNeXtBlock(
                    width, config["layer_scale"] > 0
                )
        self.norm = nn.LayerNorm(self.out_width, config["layer_norm_eps"])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the last stage row by row, pooled [B, D]."""
        x = self.stem_norm(convolve_last(self.stem, pixels.permute(0, 2, 3, 1)))
        for block in self.blocks.values():
            x = convolve_last(block, x) if isinstance(block, nn.Conv2d) else block(x)
        return {"tokens": x.flatten(1, 2), "pooled": self.norm(x.mean((1, 2)))}
