"""Local alignment of PRIOR (arXiv 2307.12577, section 3.2): regions and sentences of each pair."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.losses.local_intra_sample import local_intra_sample
from medvlp_jax.losses.simsiam import simsiam
from medvlp_jax.losses.word_region import rows_with_words
from medvlp_jax.models import heads, layers
from medvlp_jax.models.local_attention import MeanQueryPool, SigmoidCrossAttention
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, sentence_states
from medvlp_jax.types import Array, Metrics


class PriorLocal(Objective):
    """SimSiam on the regions, contrast within the report on the sentences, both through sigmoid attention.

    Needs `data.text.sentence_ids=True`. A row without a sentence does not count.

    Fields:
        features: width of the local embeddings.
        max_sentences: sentences kept of each report; sentence_pooling: "mean" or "max" over their pieces.
        local_temperature, learnable, max_scale: of the sentences' contrast, as those of `InfoNce` (0.01 in
            the released experiment); the parameter is `log_local_scale`.
        image_weight, text_weight: of the two parts.
        global_weight, global_temperature: of a contrast of `image_embed` with the attention-pooled sentences,
            PRIOR's global loss; 0 leaves it to `info_nce`.
        pool_heads: of that pool.
    """

    features: int = 512
    max_sentences: int = 16
    sentence_pooling: str = "mean"
    local_temperature: float = 0.01
    learnable: bool = True
    max_scale: float = 100.0
    image_weight: float = 1.0
    text_weight: float = 1.0
    global_weight: float = 0.0
    global_temperature: float = 0.01
    pool_heads: int = 8

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: image, text, local_scale, and global where it is used."""
        (clean,) = passes
        outputs, batch = clean.outputs, clean.batch
        require(outputs, ("image_tokens",), "prior_local", "set model.image_encoder")
        states, mask = sentence_states(
            batch, outputs, self.max_sentences, self.sentence_pooling, "prior_local"
        )
        rows = rows_with_words(mask, batch.get("example_mask"))
        regions = layers.Dense(self.features, name="region_projection")(outputs["image_tokens"])
        sentences = layers.Dense(self.features, name="sentence_projection")(states)
        by_regions, by_sentences = SigmoidCrossAttention(name="cross_attention")(
            regions, sentences, mask
        )
        predictor = heads.MLPProjection(self.features, self.features // 2, name="predictor")
        image = simsiam(
            regions,
            by_regions,
            predictor(regions, train=train),
            predictor(by_regions, train=train),
            example_mask=rows,
        )
        scale = self._scale()
        directions = local_intra_sample(
            sentences, by_sentences, mask=mask, temperature=1 / scale, example_mask=rows
        )
        text = (directions[0] + directions[1]) / 2
        loss = self.image_weight * image + self.text_weight * text
        metrics = {"image": image, "text": text, "local_scale": scale}
        if self.global_weight:
            pooled = MeanQueryPool(self.pool_heads, name="sentence_pool")(sentences, mask)
            width = outputs["image_embed"].shape[-1]
            pooled = layers.Dense(width, name="global_projection")(pooled)
            metrics["global"] = info_nce(
                outputs["image_embed"],
                layers.l2_normalize(pooled),
                1 / self.global_temperature,
                example_mask=rows,
            )
            loss = loss + self.global_weight * metrics["global"]
        return jnp.asarray(loss), metrics

    def _scale(self) -> Array:
        """Scale of the sentences' logits; not the global one, which has the name `log_logit_scale`."""
        start = -math.log(self.local_temperature)
        log_scale = jnp.asarray(start, jnp.float32)
        if self.learnable:
            log_scale = self.param("log_local_scale", nn.initializers.constant(start), ())
        return jnp.exp(jnp.minimum(log_scale, math.log(self.max_scale)))
