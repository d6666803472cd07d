"""From token states to fewer vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import Attention, Mlp


class AttentionPool(nn.Module):
    """One learned query attends to the tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps [B, L, D], of which the positions with nonzero mask [B, L] count, to [B, D]."""
        return self.attention(self.query.expand(x.shape[0], -1, -1), x, mask)[:, 0]


class MapPool(nn.Module):
    """A learned probe attends to the tokens -> y; the result is y + MLP(LayerNorm(y)) (SigLIP)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["width"]
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, config["heads"])
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, N, D] to [B, D]."""
        y = self.attention(self.probe.expand(x.shape[0], -1, -1), x)
        return (y + self.mlp(self.norm(y)))[:, 0]


def first_position(where: Tensor) -> Tensor:
    """Position of the first nonzero entry of each row of [B, L] -> [B]; 0 for an empty row."""
    length = where.shape[1]
    left = torch.arange(length, 0, -1, device=where.device)  # positions from here to the end
    return (length - (where * left).amax(1)) % length


def last_position(mask: Tensor) -> Tensor:
    """Position of the last nonzero entry of each row of [B, L] -> [B]; 0 for an empty row."""
    return ((mask != 0) * torch.arange(mask.shape[1], device=mask.device)).amax(1)


def take_position(x: Tensor, position: Tensor) -> Tensor:
    """The state of x [B, L, D] at position [B] of each row -> [B, D]."""
    index = position[:, None, None].expand(-1, 1, x.shape[-1])
    return x.gather(1, index)[:, 0]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x [B, L, D] where mask [B, L] is nonzero; zeros for an empty row."""
    keep = (mask != 0)[..., None].to(x.dtype)
    return (x * keep).sum(1) / keep.sum(1).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Maximum per feature of x [B, L, D] where mask [B, L] is nonzero; zeros for an empty row."""
    keep = (mask != 0)[..., None]
    return x.masked_fill(~keep, torch.finfo(x.dtype).min).amax(1) * keep.any(1)


def merge_word_pieces(x: Tensor, word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the states of the pieces of each word.

    Args:
        x: [B, L, D]; word_ids: [B, L], the word a piece belongs to, -1 for special tokens and padding.

    Returns:
        [B, L, D], position w holds word w; mask [B, L], whether there is such a word.
    """
    words = torch.arange(x.shape[1], device=x.device)[:, None]
    member = word_ids[:, None, :] == words
    return member.to(x.dtype) @ x, member.any(-1)
