"""Prediction of a text token by token (VirTex, arXiv 2006.06666, eq. 1; CoCa, 2205.01917, eq. 5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medvlp_jax.losses.masked import masked_language
from medvlp_jax.types import IGNORE_INDEX, Array


def next_token_labels(input_ids: Array, attention_mask: Array) -> jax.Array:
    """What each position has to predict: the token after it.

    Args:
        input_ids: [B,L] int, padding last.
        attention_mask: [B,L], nonzero for real tokens.

    Returns:
        [B,L] int32, -100 where no real token follows.
    """
    ids = jnp.asarray(input_ids, jnp.int32)
    following = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    real = jnp.pad(jnp.asarray(attention_mask)[:, 1:] != 0, ((0, 0), (0, 1)))
    return jnp.where(real, following, IGNORE_INDEX)


def captioning(
    logits: Array, input_ids: Array, attention_mask: Array, *, example_mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy of the next token, over all tokens of the batch but the first of each text.

    Args:
        logits: [B,L,V]; position i scores the token at i + 1.
        input_ids: [B,L] int, with the tokens that open and close a text.
        attention_mask: [B,L], nonzero for real tokens.
        example_mask: [B], 1 for real rows.

    Returns:
        loss (its exponential is the perplexity), share of tokens predicted right; float32 scalars, both 0
        when there is nothing to predict.
    """
    labels = next_token_labels(input_ids, attention_mask)
    return masked_language(logits, labels, example_mask=example_mask)
