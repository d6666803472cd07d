"""Regions against sentences within each sample: LoVT (arXiv 2112.02889) and its variant without contrast."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses.local_intra_sample import local_intra_sample, spatial_positives
from medvlp_jax.losses.uniformity import alignment, local_uniformity
from medvlp_jax.losses.word_region import rows_with_words
from medvlp_jax.models import heads, layers
from medvlp_jax.models.local_attention import SharedCrossAttention
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import (
    class_attention,
    grid_of,
    require,
    require_choice,
    sentence_states,
)
from medvlp_jax.types import Array, Metrics


class LocalIntraSample(Objective):
    """What a region sees in the report must fit the region, what a sentence sees in the image the sentence.

    LoVT has the weight 0.375 for this objective, beside `info_nce` with temperature 0.1 and
    `image_to_text_weight=0.75`. Mueller et al. (arXiv 2211.07254) set `contrast_weight=0` and
    `uniformity_weight` above 0, with or without `alignment_weight`. Needs `data.text.sentence_ids=True`; a
    row without a sentence does not count.

    Fields:
        features, hidden: widths of the local embeddings and of the layers before them.
        max_sentences: sentences kept of each report; sentence_pooling: "max" or "mean" over their pieces.
        local_temperature: tau of the contrast.
        threshold, relative, smooth, decay: positives among the regions, see `spatial_positives`.
        grid: rows and columns of the regions, None = square.
        weights: importance of regions and sentences: "uniform", or "attention" of the class tokens (LoVT
            takes that of its pooling).
        contrast_weight, alignment_weight, uniformity_weight: of the three parts.
        t: of the uniformity.
    """

    features: int = 512
    hidden: int = 2048
    max_sentences: int = 16
    sentence_pooling: str = "max"
    local_temperature: float = 0.3
    threshold: float = 0.5
    relative: bool = True
    smooth: bool = True
    decay: float = 1.0
    grid: tuple[int, int] | None = None
    weights: str = "uniform"
    contrast_weight: float = 1.0
    alignment_weight: float = 0.0
    uniformity_weight: float = 0.0
    t: float = 2.0

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: the parts, for regions and sentences, whose weight is not 0."""
        (clean,) = passes
        name = "local_intra_sample"
        require_choice(self.weights, ("uniform", "attention"), f"{name} weights")
        require(clean.outputs, ("image_tokens",), name, "set model.image_encoder")
        regions = clean.outputs["image_tokens"]
        grid = grid_of(regions.shape[1], self.grid, name)
        sentences, mask = sentence_states(
            clean.batch, clean.outputs, self.max_sentences, self.sentence_pooling, name
        )
        region_weights, sentence_weights = self._importance(clean, regions.shape[1])
        own, seen = self._embed(regions, sentences, mask, train)
        rows = rows_with_words(mask, clean.batch.get("example_mask"))
        positives = spatial_positives(
            *grid,
            threshold=self.threshold,
            relative=self.relative,
            smooth=self.smooth,
            decay=self.decay,
        )
        sides: dict[str, dict[str, Any]] = {
            "regions": dict(positives=positives, weights=region_weights),
            "sentences": dict(mask=mask, weights=sentence_weights),
        }
        loss, metrics = jnp.zeros([], jnp.float32), {}
        for side, options in sides.items():
            real = options.get("mask")
            pair = own[side], seen[side]
            options.update(temperature=self.local_temperature, example_mask=rows)
            parts = {
                "contrast": lambda p=pair, o=options: sum(local_intra_sample(*p, **o)),
                "alignment": lambda p=pair, m=real: alignment(*p, mask=m, example_mask=rows),
                "uniformity": lambda p=pair, m=real: local_uniformity(
                    p[0], m, t=self.t, example_mask=rows
                ),
            }
            for part, value in parts.items():
                weight = getattr(self, f"{part}_weight")
                if weight:
                    metrics[f"{side}_{part}"] = jnp.asarray(value())
                    loss = loss + weight * metrics[f"{side}_{part}"]
        return loss, metrics

    def _embed(
        self, regions: Array, sentences: Array, mask: Array, train: bool
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Local embeddings of regions and sentences, and of what each of them sees on the other side."""
        own, seen = {}, {}
        a = layers.Dense(self.features, name="region_projection")(regions)
        b = layers.Dense(self.features, name="sentence_projection")(sentences)
        contexts = SharedCrossAttention(name="cross_attention")(a, b, mask)
        for side, x, context in zip(("regions", "sentences"), (a, b), contexts, strict=True):
            head = heads.MLPProjection(self.features, self.hidden, name=f"{side}_head")
            own[side], seen[side] = head(x, train=train), head(context, train=train)
        return own, seen

    def _importance(self, clean: Pass, count: int) -> tuple[Array | None, Array | None]:
        """Weights of regions [B,N] and sentences [B,S], None = the same for all."""
        if self.weights == "uniform":
            return None, None
        name = "local_intra_sample"
        image = class_attention(clean.outputs, "image", name)[:, -count:]
        text = class_attention(clean.outputs, "text", name)
        numbers = jnp.arange(self.max_sentences)[:, None]
        member = clean.batch["sentence_ids"][:, None, :] == numbers
        return image, jnp.sum(jnp.where(member, text[:, None, :], 0.0), axis=2)
