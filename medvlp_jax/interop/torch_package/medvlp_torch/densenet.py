"""DenseNet."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import flat


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution to new channels."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, C + growth, h, w]: the input, then the new channels."""
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], dim=1)


class DenseNet(nn.Module):
    """DenseNet-BC."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["stem_width"]
        self.stem_conv = nn.Conv2d(config["channels"], width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleDict()
        for stage, depth in enumerate(config["depths"], start=1):
            if stage > 1:
                self.blocks[f"transition{stage - 1}_norm"] = nn.BatchNorm2d(width)
                conv = nn.Conv2d(width, width // 2, 1, bias=False)
                self.blocks[f"transition{stage - 1}_conv"] = conv
                width //= 2
            for i in range(1, depth + 1):
                self.blocks[f"block{stage}_layer{i}"] = DenseLayer(width, config["growth"])
                width += config["growth"]
        self.norm = nn.BatchNorm2d(width)
        self.out_width = self.token_width = width

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the last block row by row, pooled [B, D]."""
        x = F.relu(self.stem_norm(self.stem_conv(pixels)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name, block in self.blocks.items():
            x = block(x)
            if name.endswith("_norm"):
                x = F.relu(x)
            elif name.endswith("_conv"):
                x = F.avg_pool2d(x, 2)
        x = flat(F.relu(self.norm(x)))
        return {"tokens": x, "pooled": x.mean(1)}
