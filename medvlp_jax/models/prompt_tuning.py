"""Learned prompts for frozen towers: CoOp for text (arXiv 2109.01134), VPT-shallow for images (2203.12119).

Each class wraps a tower that knows nothing of it: vectors are put in where the tower's layers hand over, and
taken out again before anyone sees the tokens. The tower's parameters are below `tower`, as they are without
prompts, so its checkpoints load there; freeze them and train `prompts` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import Array, Outputs


class TextPrompts(nn.Module):
    """Context vectors behind the first token of every text (CoOp, eq. 3, one context for all classes).

    Fields:
        tower: a text encoder of this package with a `word_embed` table: bert, clip_text or siglip_text.
        length: number of context vectors; the tower's position table must hold text and vectors.
        init_std: standard deviation of their initial values, 0.02 in the paper.
    """

    tower: Any
    length: int = 16
    init_std: float = 0.02

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array, *, train: bool = False) -> Outputs:
        """Encodes token ids [B, L] with attention_mask [B, L], see the tower.

        Returns:
            The tower's outputs; tokens and hidden are [B, L, D] without the context, attention (if the tower
            returns it) is that of all L + length positions.

        Raises:
            UserError: `length` is not positive, or text and vectors are longer than the position table.
        """
        prompts = _prompts(self, self.tower.width)
        start = (input_ids.shape[0], self.length)
        # The first token stands in for the context: no tower takes it for the end of a text.
        ids, mask = (
            _insert(x, jnp.broadcast_to(x[:, :1], start)) for x in (input_ids, attention_mask)
        )

        def embed(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            out = next_call(*args, **kwargs)
            if context.module.name != "word_embed" or context.method_name != "__call__":
                return out
            vectors = jnp.broadcast_to(prompts, (*start, prompts.shape[-1])).astype(out.dtype)
            return jnp.concatenate([out[:, :1], vectors, out[:, 1 + self.length :]], axis=1)

        with nn.intercept_methods(embed):
            outputs = self.tower(ids, mask, train=train)
        return {
            **outputs,
            "tokens": _remove(outputs["tokens"], 1, self.length),
            "hidden": tuple(_remove(x, 1, self.length) for x in outputs["hidden"]),
        }


class VisualPrompts(nn.Module):
    """Prompt tokens between class token and patches, from the first block on (VPT-shallow, eq. 4 to 6).

    Fields:
        tower: a `vit.Encoder` without `remat`.
        length: number of prompt tokens.
        init_std: standard deviation of their initial values.
    """

    tower: Any
    length: int = 10
    init_std: float = 0.02

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes images [B, H, W, C], see the tower.

        Returns:
            The tower's outputs; tokens, first and last entry of hidden are without the prompts, the other
            entries and attention (if the tower returns it) are those of all positions.

        Raises:
            UserError: `length` is not positive, or the tower has `remat`.
        """
        if self.tower.remat != "none":
            raise UserError(
                f"visual prompts need a tower with remat='none', not {self.tower.remat!r}"
            )
        prompts = _prompts(self, self.tower.width)
        first = int(self.tower.class_token)

        def block(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            name, method = context.module.name, context.method_name
            if method == "__call__" and name == "block_0":
                x = args[0]
                shape = (x.shape[0], *prompts.shape[1:])
                vectors = jnp.broadcast_to(prompts, shape).astype(x.dtype)
                args = (_insert(x, vectors, first), *args[1:])
            out = next_call(*args, **kwargs)
            if method == "__call__" and name == f"block_{self.tower.depth - 1}":
                out = (_remove(out[0], first, self.length), *out[1:])
            return out

        with nn.intercept_methods(block):
            return self.tower(image, keep_ids=keep_ids, train=train)


def _prompts(module: Any, width: int) -> Array:
    """The learned vectors [1, length, width] of one of the classes above."""
    if module.length < 1:
        raise UserError(f"length={module.length}: prompt tuning needs at least one vector")
    init = nn.initializers.normal(module.init_std)
    return module.param("prompts", init, (1, module.length, width), jnp.float32)


def _insert(x: Array, new: Array, position: int = 1) -> Array:
    """`new` [B, M, ...] put into x [B, T, ...] before `position`."""
    return jnp.concatenate([x[:, :position], new, x[:, position:]], axis=1)


def _remove(x: Array, start: int, count: int) -> Array:
    """x [B, T, ...] without `count` positions from `start` on."""
    return jnp.concatenate([x[:, :start], x[:, start + count :]], axis=1)
