"""Co-attention of image and text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import PostNormBlock


class CoAttention(nn.Module):
    """Two streams that read each other (METER, M3AE)."""

    def __init__(self, image_width: int, text_width: int, config: dict[str, Any]):
        super().__init__()
        width, count = config["width"], config["layers"]
        self.image_input = nn.Linear(image_width, width)
        self.text_input = nn.Linear(text_width, width)
        self.image_modality = nn.Parameter(torch.zeros(width))
        self.text_modality = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleDict()
        for i in range(count):
            for stream in ("image", "text"):
                self.blocks[f"{stream}_block_{i}"] = PostNormBlock(config, cross=True)
        self.count = count
        # Named as in training, where a pooler is a module around its linear layer.
        self.image_pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.text_pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor
    ) -> dict[str, Tensor]:
        """[B, N, Di], [B, L, Dt], [B, L] -> image_tokens [B, N, D], text_tokens [B, L, D], pooled [B, 2D]."""
        image = self.image_input(image_tokens) + self.image_modality
        text = self.text_input(text_tokens) + self.text_modality
        for i in range(self.count):
            image_block, text_block = (
                self.blocks[f"image_block_{i}"],
                self.blocks[f"text_block_{i}"],
            )
            next_text = text_block(text, text_mask, image)
            image = image_block(image, None, text, text_mask)
            text = next_text
        pooled = [
            torch.tanh(self.text_pooler["dense"](text[:, 0])),
            torch.tanh(self.image_pooler["dense"](image[:, 0])),
        ]
        return {"image_tokens": image, "text_tokens": text, "pooled": torch.cat(pooled, dim=-1)}
