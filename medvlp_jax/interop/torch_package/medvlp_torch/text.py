"""Text encoders: BERT, RoBERTa, CLIP, SigLIP, and learned prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import PostNormBlock, PreNormBlock, blocks, causal_mask, insert, remove
from .pooling import (
    AttentionPool,
    first_position,
    last_position,
    masked_max,
    masked_mean,
    take_position,
)


def embed_words(table: nn.Module, input_ids: Tensor, prompts: Tensor | None) -> Tensor:
    """Word embeddings [B, L, D]; prompts [1, M, D] take the place of the M tokens behind the first."""
    x = table(input_ids)
    return x if prompts is None else insert(remove(x, 1, prompts.shape[1]), prompts, 1)


class Bert(nn.Module):
    """BERT or RoBERTa."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, types = config["width"], config["token_types"]
        self.pooling, self.out_width, self.token_width = config["pooling"], width, width
        self.roberta, self.padding_idx = config["position_ids"] == "roberta", config["padding_idx"]
        self.word_embed = nn.Embedding(config["vocab_size"], width)
        self.position_embed = nn.Embedding(config["max_positions"], width)
        self.token_type_embed = nn.Embedding(types, width) if types else None
        self.embed_norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.blocks = blocks(PostNormBlock, config["depth"], config)
        self.pooler = nn.Linear(width, width) if self.pooling == "pooler" else None
        if self.pooling == "attention":
            self.attention_pool = AttentionPool(width, config["heads"])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompts: Tensor | None = None
    ) -> dict[str, Any]:
        """[B, L], [B, L] -> tokens [B, L, D], pooled [B, D], hidden: the states of all layers."""
        real = (attention_mask != 0).long()
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if self.roberta:
            positions = real.cumsum(1) * real + self.padding_idx
        x = embed_words(self.word_embed, input_ids, prompts) + self.position_embed(positions)
        if self.token_type_embed is not None:
            x = x + self.token_type_embed.weight[0]
        x = self.embed_norm(x)
        hidden = [x]
        for block in self.blocks.values():
            x = block(x, attention_mask)
            hidden.append(x)
        return {"tokens": x, "pooled": self._pool(x, attention_mask), "hidden": hidden}

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(x[:, 0]))
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "eos":
            return take_position(x, last_position(mask))
        if self.pooling == "mean":
            return masked_mean(x, mask)
        return self.attention_pool(x, mask) if self.pooling == "attention" else masked_max(x, mask)


class PreNormText(nn.Module):
    """Embeddings, pre-LN blocks and a final norm: what the text towers of CLIP and SigLIP share."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["width"]
        self.out_width = self.token_width = width
        self.word_embed = nn.Embedding(config["vocab_size"], width)
        self.position_embed = nn.Embedding(config["max_positions"], width)
        self.blocks = blocks(PreNormBlock, config["depth"], config)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])

    def states(
        self, input_ids: Tensor, mask: Tensor | None, prompts: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The states after the final norm [B, L, D], and those of all layers before it."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = embed_words(self.word_embed, input_ids, prompts) + self.position_embed(places)
        hidden = [x]
        for block in self.blocks.values():
            x = block(x, mask)
            hidden.append(x)
        return self.norm(x), hidden


class ClipText(PreNormText):
    """CLIP's text transformer: causal, read at the end-of-text token."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.eos_token_id = config["eos_token_id"]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompts: Tensor | None = None
    ) -> dict[str, Any]:
        """[B, L], [B, L] -> tokens [B, L, D], pooled [B, D], hidden: the states of all layers."""
        tokens, hidden = self.states(input_ids, causal_mask(attention_mask), prompts)
        pooled = take_position(tokens, self._end(input_ids, attention_mask != 0))
        return {"tokens": tokens, "pooled": pooled, "hidden": hidden}

    def _end(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Where the text ends: the first end-of-text token, or without an id for it the highest id."""
        if self.eos_token_id is None:
            ids = input_ids.masked_fill(~real, -1)
            return first_position(ids == ids.amax(1, keepdim=True))
        found = real & (input_ids == self.eos_token_id)
        return torch.where(found.any(1), first_position(found), last_position(real))


class SiglipText(PreNormText):
    """SigLIP's text transformer: sees the padding, read at the last position."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.out_width = config["head_dim"] or config["width"]
        self.head = nn.Linear(config["width"], self.out_width)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompts: Tensor | None = None
    ) -> dict[str, Any]:
        """[B, L], [B, L] -> tokens [B, L, D], pooled [B, out], hidden: the states of all layers.

        The mask is not read: texts have to be padded to the length of training.
        """
        tokens, hidden = self.states(input_ids, None, prompts)
        return {"tokens": tokens, "pooled": self.head(tokens[:, -1]), "hidden": hidden}


class TextPrompts(nn.Module):
    """Learned context vectors behind the first token of every text (CoOp)."""

    def __init__(self, tower: Any, config: dict[str, Any]):
        super().__init__()
        self.tower, self.out_width, self.token_width = tower, tower.out_width, tower.token_width
        self.prompts = nn.Parameter(torch.zeros(1, config["length"], tower.token_width))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """As the tower; tokens and hidden are without the context."""
        count = self.prompts.shape[1]
        # The first token stands in for the context: no tower takes it for the end of a text.
        ids, mask = (insert(x, x[:, :1].expand(-1, count), 1) for x in (input_ids, attention_mask))
        out = self.tower(ids, mask, self.prompts)
        hidden = [remove(x, 1, count) for x in out["hidden"]]
        return {**out, "tokens": remove(out["tokens"], 1, count), "hidden": hidden}
