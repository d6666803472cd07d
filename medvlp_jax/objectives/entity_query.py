"""Queries for entities: is it there, and where (MedKLIP, arXiv 2301.02228; UniBrain, 2309.06828)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import entity_query as loss_lib
from medvlp_jax.models.layers import Dense, dropout
from medvlp_jax.models.query_decoder import VARIANTS, QueryDecoder
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.inputs import require, require_choice
from medvlp_jax.objectives.query_table import query_table
from medvlp_jax.types import Array, Metrics


class EntityQuery(Objective):
    """One query per label of the data set; the decoder and the classifier are the objective's own.

    Fields:
        decoder: variant of `models.query_decoder`; options: further arguments of it.
        queries: file of query embeddings [K, E] (.npy), one row per label, e.g. a text tower's states of
            their descriptions; "" = learned queries.
        uncertain: "ignore" or "zeros".
        location_weight: of the position contrast, which needs the batch key `entity_positions` [B, P, K] (1
            where the entity is at the position); 0 = existence alone.
        positions: file of position embeddings [P, E] (.npy); "" = learned ones of width 768.
        negatives: positions that each positive one is set against.
        rate: dropout of the decoder's states.
    """

    decoder: str = "medklip"
    options: Any = None
    queries: str = ""
    uncertain: str = "ignore"
    location_weight: float = 0.0
    positions: str = ""
    negatives: int = 7
    rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: existence, accuracy, and position where it is used.

        Raises:
            UserError: the data set has no labels, or a table does not fit them.
        """
        (clean,) = passes
        batch, count = clean.batch, clean.batch["label"].shape[-1]
        require_choice(self.uncertain, ("ignore", "zeros"), "entity_query uncertain")
        require_choice(self.decoder, tuple(VARIANTS), "entity_query decoder")
        if not count:
            raise UserError(
                "objective entity_query asks for labels, but the dataset has none: choose a labelled "
                "dataset or another objective (e.g. info_nce)"
            )
        states = self._states(clean, count, train)
        init = nn.initializers.normal(0.02)
        logits = Dense(2, kernel_init=init, dtype=self.dtype, name="classifier")(states)
        mask = batch.get("example_mask")
        loss, accuracy = loss_lib.existence(
            logits,
            batch["label"],
            batch["label_mask"],
            uncertain=cast(Any, self.uncertain),
            example_mask=mask,
        )
        metrics: Metrics = {"existence": loss, "accuracy": accuracy}
        if self.location_weight:
            metrics["position"] = self._position(states, batch, mask)
            loss = loss + self.location_weight * metrics["position"]
        return loss, metrics

    def _states(self, clean: Pass, count: int, train: bool) -> jax.Array:
        """States of the queries [B,K,D]."""
        settings = {**VARIANTS[self.decoder], "dtype": self.dtype, "project_context": True}
        given = None
        if self.queries:
            given = query_table(self, "query_embeddings", self.queries, count)
            settings["project_queries"] = True
        else:
            settings["learned"] = count
        decoder = QueryDecoder(**{**settings, **(self.options or {})}, name="decoder")
        states = decoder(clean.outputs["image_tokens"], given, train=train)["states"]
        if train and self.rate > 0:
            states = dropout(states, self.rate, self.make_rng("dropout"))
        return states

    def _position(self, states: jax.Array, batch: Any, mask: Array | None) -> jax.Array:
        """The position contrast."""
        remedy = "its data set must hold positions of entities, or set location_weight=0"
        require(batch, ("entity_positions",), "entity_query", remedy)
        where = batch["entity_positions"]
        if self.positions:
            table: Array = query_table(self, "position_embeddings", self.positions, where.shape[1])
        else:
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, (where.shape[1], 768), jnp.float32)
        init = nn.initializers.normal(0.02)
        dense = Dense(table.shape[-1], kernel_init=init, dtype=self.dtype, name="position_head")
        candidates, usable = loss_lib.sample_positions(
            self.make_rng("corruption"), where, negatives=self.negatives
        )
        present = usable & (batch["label"] > 0) & (batch["label_mask"] > 0)
        return loss_lib.position_contrast(
            dense(states), table, candidates, present, example_mask=mask
        )
