"""Entropy of the similarities of tokens and patches (TIER, arXiv 2212.06710)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import masked_softmax
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.losses.token_alignment import normalise
from medvlp_jax.types import Array


def token_patch_entropy(
    image_token_embed: Array,
    text_token_embed: Array,
    text_token_mask: Array,
    *,
    temperature: float = 1.0,
    variant: Literal["paper", "released"] = "paper",
    eps: float = 1e-7,
    example_mask: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean entropy over the patches that each token is similar to, and over the tokens for each patch.

    H_t = -sum_p a_tp log a_tp with a = softmax_p(cos(t, p) / temperature), and the same with the roles
    exchanged; the regulariser is lambda_patch H_token + lambda_token H_patch, lambdas of 0.1 to 0.2.

    Args:
        image_token_embed: [B,N,D]; text_token_embed: [B,L,D], not normalised.
        text_token_mask: [B,L], 1 for real tokens.
        temperature: of the softmax; the released code has none.
        variant: "paper" leaves padding tokens out; "released" counts them and adds eps to the shares.
        eps: see `variant`.
        example_mask: [B], 1 for real rows.

    Returns:
        entropy of the tokens (over patches) and of the patches (over tokens), means over the tokens or
        patches of each row and the rows; float32 scalars.
    """
    patches, tokens = normalise(image_token_embed), normalise(text_token_embed)
    real = jnp.asarray(text_token_mask) > 0
    if variant == "released":
        real = jnp.ones_like(real)
    cosine = jnp.einsum("bld,bnd->bln", tokens, patches, precision="highest") / temperature

    def entropy(shares: jax.Array, axis: int) -> jax.Array:
        if variant == "released":
            shares = shares + eps
        some = shares > 0
        return -jnp.sum(jnp.where(some, shares * jnp.log(jnp.where(some, shares, 1.0)), 0.0), axis)

    of_tokens = entropy(jax.nn.softmax(cosine, axis=2), 2)
    of_tokens = jnp.sum(jnp.where(real, of_tokens, 0.0), axis=1) / jnp.maximum(real.sum(axis=1), 1)
    of_patches = entropy(masked_softmax(cosine, real[:, :, None], axis=1), 1).mean(axis=1)
    weights = row_weights(example_mask, cosine.shape[0])
    return jnp.sum(weights * of_tokens), jnp.sum(weights * of_patches)
