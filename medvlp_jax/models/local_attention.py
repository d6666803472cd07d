"""Light attention between the regions of an image and the sentences of its report, both ways."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import attention_weights, weighted_sum
from medvlp_jax.models import layers
from medvlp_jax.models.pooling import masked_mean
from medvlp_jax.types import Array


class SharedCrossAttention(nn.Module):
    """One head whose keys, values and output are shared by both sides (LoVT, arXiv 2112.02889, section 3.3).

    The score of a region and a sentence is the same in both directions; each direction takes its own softmax.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, regions: Array, sentences: Array, sentence_mask: Array
    ) -> tuple[Array, Array]:
        """Maps regions [B,N,D] and sentences [B,S,D] to what each region, and each sentence, sees.

        Args:
            regions: [B,N,D]; sentences: [B,S,D]; sentence_mask: [B,S], 1 for real ones.

        Returns:
            [B,N,D] and [B,S,D]; regions of a report without sentences see the norm of zeros.
        """
        width = regions.shape[-1]
        key = layers.Dense(width, dtype=self.dtype, name="key")
        value = layers.Dense(width, dtype=self.dtype, name="value")
        out = layers.Dense(width, dtype=self.dtype, name="out")
        norm = layers.LayerNorm(1e-5, self.dtype, name="norm")
        a, b = key(regions), key(sentences)
        to_sentences = attention_weights(a, b, key_mask=sentence_mask, scale=width**-0.5)
        to_regions = attention_weights(b, a, scale=width**-0.5)
        seen_by_regions = weighted_sum(to_sentences, value(sentences))
        seen_by_sentences = weighted_sum(to_regions, value(regions))
        return norm(out(seen_by_regions)), norm(out(seen_by_sentences))


class SigmoidCrossAttention(nn.Module):
    """Both sides attend to each other with sigmoid weights (PRIOR, arXiv 2307.12577, section 3.2).

    A region that no sentence speaks of may so see nothing at all; contexts are sums, not means.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, regions: Array, sentences: Array, sentence_mask: Array
    ) -> tuple[Array, Array]:
        """Maps regions [B,N,D] and sentences [B,S,D] to what each region, and each sentence, sees.

        Args:
            regions: [B,N,D]; sentences: [B,S,D]; sentence_mask: [B,S], 1 for real ones.

        Returns:
            [B,N,D] and [B,S,D].
        """
        width = regions.shape[-1]

        def project(x: Array, side: str) -> tuple[Array, ...]:
            names = (f"{side}_{part}" for part in ("query", "key", "value"))
            return tuple(layers.Dense(width, dtype=self.dtype, name=name)(x) for name in names)

        query_a, key_a, value_a = project(regions, "region")
        query_b, key_b, value_b = project(sentences, "sentence")
        real = (jnp.asarray(sentence_mask) > 0).astype(jnp.float32)
        to_sentences = _sigmoid_weights(query_a, key_b) * real[:, None, :]
        to_regions = _sigmoid_weights(query_b, key_a)
        return weighted_sum(to_sentences, value_b), weighted_sum(to_regions, value_a)


def _sigmoid_weights(query: Array, key: Array) -> Array:
    query, key = jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32)
    scores = jnp.einsum("bqd,bkd->bqk", query, key, precision="highest")
    return nn.sigmoid(scores / query.shape[-1] ** 0.5)


class MeanQueryPool(nn.Module):
    """The mean of the tokens attends to itself and to them (PRIOR's pool over the sentences of a report)."""

    heads: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """Maps tokens [B,K,D], of which those with nonzero mask [B,K] count, to [B,D]."""
        real = jnp.ones(tokens.shape[:2]) if mask is None else mask
        mean = masked_mean(tokens, real)[:, None]
        states = jnp.concatenate([mean, tokens], axis=1)
        keep = jnp.concatenate([jnp.ones((tokens.shape[0], 1)), real], axis=1)
        attention = layers.MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")
        return attention(mean, states, keep, train=train)[0][:, 0]
