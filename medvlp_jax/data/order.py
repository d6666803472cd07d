"""Order of the training examples: endless global batches of indices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from medvlp_jax.data import samplers
from medvlp_jax.data.mixture import Mixture, row_counts
from medvlp_jax.data.options import DataOptions
from medvlp_jax.data.row_texts import TextEncoder, text_id
from medvlp_jax.data.source import Examples, columns
from medvlp_jax.data.studies import Studies, drawn_examples
from medvlp_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pools:
    """Examples that are drawn from, and how many of them are in a batch.

    Attributes:
        indices: per dataset, positions of the examples that can be drawn (with studies as rows, one image
            of each study).
        counts: per dataset, rows of every global batch.
    """

    indices: tuple[np.ndarray, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of examples that can be drawn."""
        return sum(len(pool) for pool in self.indices)


def make_pools(source: Examples, studies: Studies | None, options: DataOptions) -> Pools:
    """Cuts a source into the pools of its datasets.

    Raises:
        UserError: a pool is smaller than its rows of a batch.
    """
    drawn = drawn_examples(source, studies, options.image.per_study)
    batch = options.global_batch_size
    names, bounds, counts = [source.name], [0, len(source)], (batch,)
    if isinstance(source, Mixture) and options.mixture:
        names, bounds = list(options.mixture), source.starts.tolist()
        counts = row_counts(options.mixture, batch)
    cuts = np.searchsorted(drawn, bounds)
    pools = tuple(drawn[a:b] for a, b in itertools.pairwise(cuts))
    for name, pool, count in zip(names, pools, counts, strict=True):
        if len(pool) < count:
            kind = "examples" if options.image.per_study == 1 else "studies"
            fewer = f"{max(len(pool), 1)} or less (it is {batch})" if len(names) == 1 else "less"
            raise UserError(
                f"split {options.train_split!r} of {name} has {len(pool)} {kind}, fewer than one batch "
                f"needs ({count}): set data.global_batch_size to {fewer}"
            )
    return Pools(pools, counts)


def index_batches(
    source: Examples, pools: Pools, options: DataOptions, texts: TextEncoder, seed: int, stream: int
) -> Any:
    """Endless Grain dataset: step -> example indices int64 [B] of the global batch.

    Args:
        source: what the indices refer to.
        pools: from `make_pools`.
        options: `config.data`.
        texts: chooses the texts that `data.distinct` compares.
        seed: of the run.
        stream: `samplers.IMAGE_ORDER` or `TEXT_ORDER`.

    Raises:
        UserError: labels are to be balanced and there are none, or rows cannot be distinct.
    """
    balanced = _balanced(source, pools, options, seed, stream)
    parts = []
    for number, (pool, count) in enumerate(zip(pools.indices, pools.counts, strict=True)):
        if balanced:
            order: Any = grain.MapDataset.range(len(pool)).repeat()
            order = order.map_with_index(balanced[number]).batch(count)
        else:
            order = _shuffled(len(pool), count, samplers.order_seed(seed, stream, number))
        parts.append(order.map(functools.partial(np.take, pool)))
    batches = parts[0]
    if len(parts) > 1:
        mixed = samplers.Mixed(parts, samplers.order_seed(seed, stream))
        batches = grain.MapDataset.range(1).repeat().map_with_index(mixed)
    if options.distinct == "none":
        return batches
    keys = _distinct_keys(source, options, texts)
    samplers.require_distinct(keys, pools.indices, pools.counts, source.name)
    weights = [draw.weights for draw in balanced]
    distinct = samplers.Distinct(
        tuple(keys.values()), pools.indices, samplers.order_seed(seed, stream), weights
    )
    return batches.map_with_index(distinct)


def _shuffled(examples: int, batch: int, seed: int) -> Any:
    """Endless Grain dataset of batches of positions: every epoch is a new permutation, cut to
    whole batches so that no example occurs twice in a batch."""
    order = grain.MapDataset.range(examples).shuffle(seed=seed)
    return order[: examples // batch * batch].repeat().batch(batch)


def _balanced(
    source: Examples, pools: Pools, options: DataOptions, seed: int, stream: int
) -> Sequence[samplers.Balanced]:
    """One balanced draw per pool; none when labels are not to be balanced."""
    if not options.label_balance:
        return ()
    if not source.label_names:
        raise UserError(
            f"data.label_balance=True needs labels, and {source.name} has none: set it to False"
        )
    unknown = np.full(len(source.label_names), -2, np.int8)
    rows = columns(source, ("label",))["label"]
    labels = np.stack([unknown if row is None else row for row in rows])
    return [
        samplers.Balanced(labels[pool], samplers.order_seed(seed, stream, number), stream)
        for number, pool in enumerate(pools.indices)
    ]


def _distinct_keys(
    source: Examples, options: DataOptions, texts: TextEncoder
) -> dict[str, np.ndarray]:
    """What two rows of a batch must not share: "patient" and "text" -> int64 [n].

    Raises:
        UserError: no example has a patient id.
    """
    wanted = options.distinct.split("_")
    fields = {"patient": ("subject_id",), "text": ("text", "findings", "impression")}
    subjects, contents = [], []
    for example in source.with_fields([f for key in wanted for f in fields[key]]):
        subjects.append(example.get("subject_id"))
        if "text" in wanted:
            # As evaluation reads it: a text that is chosen at random counts as its whole report.
            contents.append(text_id(texts.choose(example, None)[0]))
    if "patient" in wanted and not any(subjects):
        raise UserError(
            f"data.distinct={options.distinct!r} needs patient ids, and {source.name} has none: set it to "
            "'text' or 'none'"
        )
    keys = {"patient": samplers.numbered(subjects), "text": np.array(contents, np.int64)}
    return {key: keys[key] for key in wanted}
