"""Any tower of flat images on videos and stacks of slices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .pooling import AttentionPool, masked_max, masked_mean


class Frames(nn.Module):
    """Encodes each frame for itself and pools over the real frames."""

    def __init__(self, tower: Any, config: dict[str, Any]):
        super().__init__()
        self.tower, self.out_width, self.token_width = tower, tower.out_width, tower.token_width
        self.pooling = config["pooling"]
        if self.pooling == "attention":
            self.attention_pool = AttentionPool(self.out_width, config["heads"])

    def forward(self, pixels: Tensor, frame_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes frames.

        Args:
            pixels: [B, T, C, H, W].
            frame_mask: [B, T], nonzero for real frames; None = all are.

        Returns:
            tokens [B, T * N, D] frame by frame, pooled [B, D], token_mask [B, T * N].
        """
        batch, count = pixels.shape[:2]
        if frame_mask is None:
            frame_mask = torch.ones(batch, count, device=pixels.device)
        real = (frame_mask != 0)[:, :, None, None, None]
        out = self.tower(torch.where(real, pixels, 0.0).flatten(0, 1))
        frames = out["pooled"].unflatten(0, (batch, count))
        tokens = out["tokens"].unflatten(0, (batch, count))
        token_mask = frame_mask[:, :, None].expand(-1, -1, tokens.shape[2]).flatten(1)
        return {
            "tokens": tokens.flatten(1, 2),
            "pooled": self._pool(frames, frame_mask),
            "token_mask": token_mask,
        }

    def _pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "attention":
            return self.attention_pool(frames, mask)
        return masked_max(frames, mask) if self.pooling == "max" else masked_mean(frames, mask)
