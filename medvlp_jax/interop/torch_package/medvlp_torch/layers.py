"""What several towers share: activations, attention, feed-forward, transformer blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Function of that name: gelu (exact), gelu_tanh, quick_gelu or relu."""
    known = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "relu": F.relu}
    return known[name]


class Attention(nn.Module):
    """Multi-head attention of x [B, T, D] to a context [B, S, Dc]."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int | None = None,
        bias: bool = True,
        out: int | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context or width, width, bias=bias)
        self.value = nn.Linear(context or width, width, bias=bias)
        self.out = nn.Linear(width, out or width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Maps to [B, T, out]; mask [B, S] or [B, 1, T, S] is nonzero where the context may be seen."""
        context = x if context is None else context
        q, k, v = self._split(self.query(x)), self._split(self.key(context)), self.value(context)
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, self._split(v))
        else:
            # A row without any real token gets zeros, and must not become a softmax over nothing.
            allowed = (mask if mask.ndim == 4 else mask[:, None, None, :]) != 0
            some = allowed.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(q, k, self._split(v), attn_mask=allowed | ~some)
            y = y * some
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, out: int, name: str, *, bias: bool = True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias), nn.Linear(hidden, out, bias)
        self.activation = activation(name)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., width] to [..., out]."""
        return self.fc2(self.activation(self.fc1(x)))


class PreNormBlock(nn.Module):
    """Block of ViT: x + f(LayerNorm(x)), each branch times a learned vector with `layer_scale` (DINOv2).

    With `context`, its width, there is attention to another sequence in between (GPT-2).
    """

    def __init__(self, config: dict[str, Any], *, context: int | None = None):
        super().__init__()
        width, eps = config["width"], config["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = Attention(width, config["heads"], bias=config.get("qkv_bias", True))
        if context:
            self.cross_norm = nn.LayerNorm(width, eps)
            self.cross_attention = Attention(width, config["heads"], context=context)
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])
        scaled = config.get("layer_scale", 0) > 0
        self.layer_scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.layer_scale2 = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        y = self.attention(self.norm1(x), None, mask)
        x = x + (y if self.layer_scale1 is None else y * self.layer_scale1)
        if context is not None:
            x = x + self.cross_attention(self.cross_norm(x), context, context_mask)
        y = self.mlp(self.norm2(x))
        return x + (y if self.layer_scale2 is None else y * self.layer_scale2)


class PostNormBlock(nn.Module):
    """Block of BERT: LayerNorm(x + f(x)); with `cross` there is attention to another sequence in between."""

    def __init__(self, config: dict[str, Any], *, cross: bool = False):
        super().__init__()
        width, heads, eps = config["width"], config["heads"], config["layer_norm_eps"]
        self.attention, self.attention_norm = Attention(width, heads), nn.LayerNorm(width, eps)
        if cross:
            self.cross_attention = Attention(width, heads)
            self.cross_attention_norm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])
        self.mlp_norm = nn.LayerNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        x = self.attention_norm(x + self.attention(x, None, mask))
        if context is not None:
            y = self.cross_attention(x, context, context_mask)
            x = self.cross_attention_norm(x + y)
        return self.mlp_norm(x + self.mlp(x))


def causal_mask(mask: Tensor) -> Tensor:
    """Mask [B, 1, L, L] by which a position sees the real tokens of mask [B, L] up to itself."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask != 0)[:, None, None, :] & (places[None, :] <= places[:, None])


def blocks(kind: Callable[..., nn.Module], depth: int, *args: Any, **options: Any) -> nn.ModuleDict:
    """`block_0` ..., each kind(*args, **options)."""
    return nn.ModuleDict({f"block_{i}": kind(*args, **options) for i in range(depth)})


def insert(x: Tensor, new: Tensor, position: int) -> Tensor:
    """`new` [1 or B, M, ...] put into x [B, T, ...] before a position."""
    return torch.cat([x[:, :position], new.expand(x.shape[0], *new.shape[1:]), x[:, position:]], 1)


def remove(x: Tensor, start: int, count: int) -> Tensor:
    """x [B, T, ...] without `count` positions from `start` on."""
    return torch.cat([x[:, :start], x[:, start + count :]], dim=1)
