"""MIL-NCE: an image (or clip) with several texts of which any may fit (Miech et al., arXiv 1912.06430)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF
from medvlp_jax.losses.info_nce import row_weights
from medvlp_jax.types import Array

Variant = Literal["paper", "released"]


def mil_nce(
    image_embed: Array,
    text_embed: Array,
    logit_scale: Array | float,
    *,
    text_present: Array | None = None,
    both_directions: bool = True,
    variant: Variant = "paper",
    example_mask: Array | None = None,
) -> jax.Array:
    """L = mean_i -log [sum_{P_i} e^s / (sum_{P_i} e^s + sum_{N_i} e^s)] (eq. 1).

    P_i are the image's own texts. N_i are the other rows' texts with this image and, with `both_directions`,
    the other rows' images with this row's texts.

    Args:
        image_embed: [B,D], L2-normalised.
        text_embed: [B,P,D], L2-normalised, P texts per row.
        logit_scale: inverse temperature.
        text_present: [B,P], 1 where the row has the text; None = all. Rows without any text are no anchors.
        both_directions: see above.
        variant: "released" counts the positives twice in the denominator, as the code of the paper does with
            both directions (each lies in a row and in a column of its score matrix).
        example_mask: [B], 1 for real rows; padded rows are no anchors and no candidates.

    Returns:
        float32 scalar; with one text per row and one direction it is InfoNCE from image to text.
    """
    image = jnp.asarray(image_embed, jnp.float32)
    text = jnp.asarray(text_embed, jnp.float32)
    rows, count = text.shape[:2]
    there = jnp.ones((rows, count), bool) if text_present is None else jnp.asarray(text_present) > 0
    if example_mask is not None:
        there &= jnp.asarray(example_mask)[:, None] > 0
    anchors = there.any(axis=1)
    scores = jnp.einsum("id,jpd->ijp", image, text, precision="highest") * logit_scale
    # An image that is no anchor is no negative of other rows' texts either.
    pairs = anchors[:, None, None] & there[None]
    scores = jnp.where(pairs, scores, OFF)
    own = jnp.eye(rows, dtype=bool)[:, :, None]
    positive = jax.nn.logsumexp(jnp.where(own, scores, OFF), axis=(1, 2))
    others = jnp.where(own, OFF, scores)
    parts = [positive, jax.nn.logsumexp(others, axis=(1, 2))]
    if both_directions:
        parts.append(jax.nn.logsumexp(others, axis=(0, 2)))
        if variant == "released":
            parts.append(positive)
    loss = jax.nn.logsumexp(jnp.stack(parts), axis=0) - positive
    return jnp.sum(row_weights(anchors, rows) * jnp.where(anchors, loss, 0.0))
