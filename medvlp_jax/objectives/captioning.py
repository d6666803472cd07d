"""Captioning: the report, token by token, from the image (VirTex, arXiv 2006.06666; RadTex, REFERS)."""

from __future__ import annotations

import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses import captioning as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics


class Captioning(Objective):
    """Next-token prediction of the model's `text_decoder`, teacher-forced."""

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: accuracy of the next token, perplexity.

        Raises:
            UserError: the model has no text decoder.
        """
        del train
        (clean,) = passes
        if "decoder_logits" not in clean.outputs:
            raise UserError(
                "objective captioning needs a text decoder; set config.model.text_decoder, for example "
                "dict(name='causal_decoder.Decoder', variant='captioner')"
            )
        batch = clean.batch
        loss, accuracy = loss_lib.captioning(
            clean.outputs["decoder_logits"],
            batch["input_ids"],
            batch["attention_mask"],
            example_mask=batch.get("example_mask"),
        )
        return loss, {"accuracy": accuracy, "perplexity": jnp.exp(loss)}
