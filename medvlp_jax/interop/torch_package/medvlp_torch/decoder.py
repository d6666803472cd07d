"""Text decoder for captions and reports: GPT-2's causal transformer, optionally looking at the image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import PreNormBlock, blocks, causal_mask


class CausalDecoder(nn.Module):
    """Predicts each next token from the ones before it and from a context.

    `context_width` is that of the states which cross-attention reads.
    """

    def __init__(self, config: dict[str, Any], context_width: int):
        super().__init__()
        width = config["width"]
        self.cross_attention = config["cross_attention"]
        self.word_embed = nn.Embedding(config["vocab_size"], width)
        self.position_embed = nn.Embedding(config["max_positions"], width)
        context = context_width if self.cross_attention else None
        self.blocks = blocks(PreNormBlock, config["depth"], config, context=context)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        # Without this layer the table of the words is the output layer.
        self.output = None if config["tied"] else nn.Linear(width, config["vocab_size"], bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Scores of the next token.

        Args:
            input_ids, attention_mask: [B, L], padding last.
            context: [B, S, Dc]; context_mask: [B, S], nonzero where it may be seen, None = everywhere.

        Returns:
            logits [B, L, V]: position i scores the token at i + 1.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embed(input_ids) + self.position_embed(places)
        mask = causal_mask(attention_mask)
        context = context if self.cross_attention else None
        for block in self.blocks.values():
            x = block(x, mask, context, context_mask)
        x = self.norm(x)
        return F.linear(x, self.word_embed.weight) if self.output is None else self.output(x)
