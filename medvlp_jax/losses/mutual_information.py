"""Local mutual information of regions and sentences (Liao et al., arXiv 2103.04537).

Every sentence is judged against the regions of every image by a critic f; lower bounds on the mutual
information of matching regions and sentences are then maximised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from medvlp_jax.losses.attended_context import OFF, map_texts
from medvlp_jax.types import Array

Critic = Callable[[Array, Array], jax.Array]
Estimator = Literal["infonce", "dv", "jsd"]


def dot_critic(regions: Array, sentences: Array) -> jax.Array:
    """f = <region, sentence>: regions [B,N,D], sentences [T,S,D] -> [T,B,S,N]."""
    a, b = jnp.asarray(regions, jnp.float32), jnp.asarray(sentences, jnp.float32)
    return jnp.einsum("bnd,tsd->tbsn", a, b, precision="highest")


def mlp_critic(layers: Sequence[tuple[Array, Array]]) -> Critic:
    """f = multilayer perceptron with ReLU on the concatenation of region and sentence, as released.

    Args:
        layers: (kernel, bias) of each layer; the first kernel is [Dr + Ds, H], the last one [H, 1].

    Returns:
        a critic: regions [B,N,Dr], sentences [T,S,Ds] -> [T,B,S,N].
    """

    def critic(regions: Array, sentences: Array) -> jax.Array:
        a, b = jnp.asarray(regions, jnp.float32), jnp.asarray(sentences, jnp.float32)
        kernel, bias = layers[0]
        width = a.shape[-1]
        # A linear layer of a concatenation is the sum of two linear layers: no pair is built before it.
        first = jnp.matmul(a, kernel[:width], precision="highest")[None, :, None, :, :]
        second = jnp.matmul(b, kernel[width:], precision="highest")[:, None, :, None, :]
        x = first + second + bias
        for kernel, bias in layers[1:]:
            x = jnp.matmul(jax.nn.relu(x), kernel, precision="highest") + bias
        return x[..., 0]

    return critic


def sentence_scores(
    regions: Array,
    sentences: Array,
    critic: Critic = dot_critic,
    *,
    select: Literal["max", "mean"] = "max",
    tile: int | None = None,
) -> jax.Array:
    """Score of every image for every sentence: that of its best region, or the mean over its regions.

    Args:
        regions: [B,N,Dr]; sentences: [B,S,Ds].
        critic: f.
        select: "max" or "mean" over the regions.
        tile: texts at a time, see `map_texts`; None = all.

    Returns:
        [Bi,Bt,S] float32, images in rows.
    """
    reduce = jnp.max if select == "max" else jnp.mean
    scores = map_texts(lambda x: reduce(critic(regions, x), axis=-1), (sentences,), tile)
    return scores.swapaxes(0, 1)


def mutual_information(
    scores: Array,
    sentence_mask: Array,
    *,
    estimator: Estimator = "infonce",
    variant: Literal["paper", "released"] = "paper",
    example_mask: Array | None = None,
    drop_negatives: Array | None = None,
) -> jax.Array:
    """Negative lower bound on the mutual information; P = pairs of one row, Q = pairs of different rows.

    "infonce": -E_P[f - log sum over the images of exp(f)], the own image included;
    "dv": -(E_P[f] - log E_Q[exp(f)]) (Donsker and Varadhan, MINE);
    "jsd": E_P[softplus(-f)] + E_Q[softplus(f)] (Jensen-Shannon, Deep InfoMax, 1808.06670, eq. 4).

    Args:
        scores: [B,B,S] f, images in rows, of `sentence_scores`.
        sentence_mask: [B,S], 1 for real sentences.
        estimator: see above.
        variant: "released" changes "infonce": -(E_P[f] - log sum_Q exp(f)) over all pairs of Q at once.
        example_mask: [B], 1 for real rows.
        drop_negatives: [B,B] True for pairs that are not in Q (the released code leaves out images of the
            same study).

    Returns:
        float32 scalar; 0 where P or Q is empty.
    """
    scores = jnp.asarray(scores, jnp.float32)
    rows = scores.shape[0]
    real = jnp.ones((rows,), bool) if example_mask is None else jnp.asarray(example_mask) > 0
    sentence = (jnp.asarray(sentence_mask) > 0) & real[:, None]  # [Bt,S]
    own = jnp.eye(rows, dtype=bool)[:, :, None]
    joint = own & sentence[None]
    product = ~own & real[:, None, None] & sentence[None]
    if drop_negatives is not None:
        product &= ~jnp.asarray(drop_negatives)[:, :, None]
    pairs, others = joint.sum(), product.sum()

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(where.sum(), 1)

    if estimator == "jsd":
        loss = mean(jax.nn.softplus(-scores), joint) + mean(jax.nn.softplus(scores), product)
    elif estimator == "infonce" and variant == "paper":
        everyone = jax.nn.logsumexp(jnp.where(joint | product, scores, OFF), axis=0)
        loss = mean(everyone, sentence) - mean(scores, joint)
    else:
        everyone = jax.nn.logsumexp(jnp.where(product, scores, OFF))
        if estimator == "dv":
            everyone = everyone - jnp.log(jnp.maximum(others, 1))
        loss = everyone - mean(scores, joint)
    return jnp.where((pairs > 0) & (others > 0), loss, 0.0)
