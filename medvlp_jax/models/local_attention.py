"""Light attention between the regions of an image and the sentences of its report, both ways."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import attention_weights, weighted_sum
from medvlp_jax.models import layers
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
