"""Images against entities and disease queries (KAD, arXiv 2302.14042, stage 2)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import image_knowledge as loss_lib
from medvlp_jax.losses.entity_query import existence
from medvlp_jax.models.layers import Dense, dropout
from medvlp_jax.models.query_decoder import VARIANTS, QueryDecoder
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.objectives.query_table import query_table
from medvlp_jax.objectives.temperature import logit_scale
from medvlp_jax.types import Array, Metrics


class ImageKnowledge(Objective):
    """L = ITC + CE(decoder(queries, image tokens)) + CE(decoder(queries, entities of the report)).

    The image is the mean of `image_token_embed` (model.image_token_projection: KAD has two layers to 768),
    the entities are `text_pooled`; both must have the width of the decoder. The same decoder reads both.

    Fields:
        decoder: variant of `models.query_decoder`.
        queries: file of query embeddings [K, D] (.npy) by the text tower, one per label; "" = learned ones.
        existence_weight: of the classification; text_weight: of the text's part of it (0 = images alone, as
            the released code without `--use_entity_features`).
        uncertain: "zeros" in the released launch, or "ignore".
        temperature: of the contrast, at the start; variant: see `losses.image_knowledge`.
        rate: dropout of the decoder's states.
    """

    decoder: str = "kad"
    queries: str = ""
    existence_weight: float = 1.0
    text_weight: float = 1.0
    uncertain: str = "zeros"
    temperature: float = 0.07
    max_scale: float = 100.0
    variant: str = "paper"
    rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: contrast, image_existence, accuracy, and text_existence where used.

        Raises:
            UserError: no labels, no projected image tokens, or states of different widths.
        """
        (clean,) = passes
        batch = clean.batch
        image_tokens, entities = self._states(clean)
        scale = None
        if self.variant == "paper":
            scale = logit_scale(self, self.temperature, max_scale=self.max_scale)
        contrast = loss_lib.image_entity_contrast(
            jnp.asarray(image_tokens, jnp.float32).mean(axis=1),
            entities,
            logit_scale=scale,
            temperature=self.temperature,
            variant=cast(loss_lib.Variant, self.variant),
            example_mask=batch.get("example_mask"),
        )
        contexts = {"image": image_tokens}
        if self.text_weight:
            contexts["text"] = entities[:, None]
        found = self._existence(contexts, batch, train)
        metrics: Metrics = {"contrast": contrast, "accuracy": found["image"][1]}
        loss = contrast
        for name, weight in (("image", 1.0), ("text", self.text_weight)):
            if name in found:
                metrics[f"{name}_existence"] = found[name][0]
                loss = loss + self.existence_weight * weight * found[name][0]
        return loss, metrics

    def _states(self, clean: Pass) -> tuple[Array, Array]:
        """Image tokens [B,N,D] and entities [B,D] after all checks."""
        require_choice(self.variant, ("paper", "released"), "image_knowledge variant")
        require_choice(self.decoder, tuple(VARIANTS), "image_knowledge decoder")
        remedy = "set model.image_token_projection"
        require(clean.outputs, ("image_token_embed",), "image_knowledge", remedy)
        if clean.batch["label"].shape[-1] == 0:
            raise UserError(
                "objective image_knowledge asks for labels, but the dataset has none: choose a labelled one"
            )
        tokens, entities = clean.outputs["image_token_embed"], clean.outputs["text_pooled"]
        width = VARIANTS[self.decoder]["width"]
        if not tokens.shape[-1] == entities.shape[-1] == width:
            raise UserError(
                f"image_knowledge: image tokens are {tokens.shape[-1]} wide, the text {entities.shape[-1]}, "
                f"the decoder {width}; set model.image_token_projection.features and the decoder to the "
                "width of the text tower"
            )
        return tokens, entities

    def _existence(
        self, contexts: dict[str, Array], batch: Any, train: bool
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Loss and accuracy of the queries on each context [B,S,D]."""
        count, init = batch["label"].shape[-1], nn.initializers.normal(0.02)
        given = query_table(self, "query_embeddings", self.queries, count) if self.queries else None
        learned = 0 if self.queries else count
        settings = {**VARIANTS[self.decoder], "learned": learned, "dtype": self.dtype}
        decoder = QueryDecoder(**settings, name="decoder")
        classifier = Dense(2, kernel_init=init, dtype=self.dtype, name="classifier")
        found = {}
        for name, context in contexts.items():
            states = decoder(context, given, train=train)["states"]
            if train and self.rate > 0:
                states = dropout(states, self.rate, self.make_rng("dropout"))
            found[name] = existence(
                classifier(states),
                batch["label"],
                batch["label_mask"],
                uncertain=cast(Any, self.uncertain),
                example_mask=batch.get("example_mask"),
            )
        return found
