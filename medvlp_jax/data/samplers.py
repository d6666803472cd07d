"""Which examples form a batch: balanced labels, distinct patients and texts, mixtures.

Everything here is a pure function of the seed and of a position or step, so a resumed run and a run on
another number of processes draw the same. (Shuffling itself is Grain's, in `pipeline`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError

# Streams of random numbers of one run; a stream never shares numbers with another.
(
    IMAGE_ORDER,
    TEXT_ORDER,
    IMAGE_AUGMENT,
    TEXT_SAMPLE,
    IMAGE_AUGMENT_2,
    STUDY_IMAGES,
    FRAME_OFFSET,
    REPLACEMENTS,
    MIXING,
) = range(9)

_QUICK_DRAWS = 64


def row_rng(seed: int, stream: int, position: int, number: int = 0) -> np.random.Generator:
    """Generator of one row: a function of the seed, the purpose and the row's global position.

    `number` tells several images of one row apart.
    """
    counter = [0, 0, number, stream]
    return np.random.Generator(np.random.Philox(key=[seed, position], counter=counter))


def order_seed(seed: int, stream: int, number: int = 0) -> int:
    """Seed of a shuffle, of dataset `number` of a mixture; hashed, because Grain shuffles epoch e with
    seed + e, and the orders of the runs with seeds 0 and 1 would otherwise be each other's, one epoch
    apart."""
    return int(np.random.SeedSequence([seed, stream, number]).generate_state(1)[0])


class Balanced:
    """Index of each position when labels are balanced: a new draw per epoch.

    Each label (and "no positive label") is a group of equal total weight; an example belongs to its
    rarest group. Systematic sampling makes the number of occurrences of an example the rounded-up or
    rounded-down expected one, so the common examples still occur about once.

    Attributes:
        weights: float64 [n], the expected share of each example.
    """

    def __init__(self, labels: np.ndarray, seed: int, stream: int):
        """`labels`: int8 [n, K], 1 = positive. `seed`, `stream`: as `row_rng` takes them."""
        positive = np.concatenate([labels == 1, ~(labels == 1).any(axis=1, keepdims=True)], axis=1)
        sizes = positive.sum(axis=0)
        rarity = np.where(positive, sizes, len(labels) + 1)
        group = rarity.argmin(axis=1)
        occupied = np.bincount(group, minlength=positive.shape[1])
        self.weights = 1.0 / occupied[group] / np.count_nonzero(occupied)
        self._seed, self._stream = seed, stream
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __call__(self, position: int, _: Any) -> int:
        """The example at a position of the endless sequence."""
        number = len(self.weights)
        epoch, place = divmod(position, number)
        held = self._epoch
        if held[0] != epoch:
            rng = row_rng(self._seed, self._stream, epoch)
            ticks = (np.arange(number) + rng.random()) / number
            shuffle = rng.permutation(number)
            edges = np.cumsum(self.weights[shuffle])
            picks = shuffle[np.minimum(np.searchsorted(edges, ticks), number - 1)]
            held = (epoch, rng.permutation(picks))
            self._epoch = held
        return int(held[1][place])


@dataclasses.dataclass
class Mixed:
    """Joins the batches of several pools of examples and shuffles the rows, so that every process gets
    some of each.

    Attributes:
        batches: per pool, an endless random-access sequence of indices.
        seed: from `order_seed`.
    """

    batches: Sequence[Any]
    seed: int

    def __call__(self, step: int, _: Any) -> np.ndarray:
        """Example indices [B] of a step."""
        rows = np.concatenate([np.asarray(part[step]) for part in self.batches])
        return row_rng(self.seed, MIXING, step).permutation(rows)


class Distinct:
    """Replaces the rows of a batch whose patient (or text) another row has already.

    A replacement is drawn at random from the row's pool, with the pool's weights. So in an epoch a few
    examples are left out and a few occur twice; as many as there would be equal rows in one batch.
    """

    def __init__(
        self,
        keys: Sequence[np.ndarray],
        pools: Sequence[np.ndarray],
        seed: int,
        weights: Sequence[np.ndarray] = (),
    ):
        """Takes what is known about all examples.

        Args:
            keys: int64 [n] each; two rows with an equal value of any of them are not in one batch.
            pools: the example indices of each pool.
            seed: from `order_seed`.
            weights: per pool, the positive weights of its examples; () = all alike.
        """
        self._keys = np.stack(keys, axis=1)
        self._pools = [np.asarray(pool) for pool in pools]
        shares = list(weights) or [np.full(len(pool), 1.0) for pool in self._pools]
        self._ends = [np.cumsum(share / share.sum()) for share in shares]
        self._seed = seed
        self._pool_of = np.full(len(self._keys), -1, np.int64)
        for number, pool in enumerate(self._pools):
            self._pool_of[pool] = number

    def __call__(self, step: int, indices: np.ndarray) -> np.ndarray:
        """Example indices [B] without two equal keys.

        Raises:
            UserError: there are no such examples; `require_distinct` finds that out before.
        """
        rows = np.array(indices)
        used: set[tuple[int, int]] = set()
        repeated = [row for row, index in enumerate(rows) if not self._take(int(index), used)]
        for number in sorted({int(self._pool_of[rows[row]]) for row in repeated}):
            mine = [row for row in repeated if self._pool_of[indices[row]] == number]
            order = self._order(number, step)
            for row in mine:
                found = next((i for i in order if self._take(int(i), used)), None)
                if found is None:
                    raise UserError(
                        f"data.distinct: no examples for step {step} that share neither patient nor text "
                        "are left: choose a smaller data.global_batch_size"
                    )
                rows[row] = found
        return rows

    def _take(self, index: int, used: set[tuple[int, int]]) -> bool:
        """Marks the keys of an example as used, unless one of them is."""
        mine = list(enumerate(self._keys[index].tolist()))
        if any(key in used for key in mine):
            return False
        used.update(mine)
        return True

    def _order(self, number: int, step: int) -> Iterator[int]:
        """A pool in random order; likelier examples come earlier."""
        rng = row_rng(self._seed, REPLACEMENTS, step, number)
        pool, ends = self._pools[number], self._ends[number]
        # Nearly always one of the first few will do; an order of the whole pool takes long to make.
        for draw in rng.random(_QUICK_DRAWS):
            yield int(pool[min(np.searchsorted(ends, draw), len(pool) - 1)])
        # Exponential clocks: the order of drawing without putting back.
        clocks = rng.exponential(size=len(pool)) / np.diff(ends, prepend=0.0)
        yield from pool[np.argsort(clocks)].tolist()


def numbered(values: Sequence[str | None]) -> np.ndarray:
    """Equal texts -> equal numbers, int64 [n]; an empty one gets a number of its own."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(v, i) if v else i for i, v in enumerate(values)], np.int64)


def require_distinct(
    keys: dict[str, np.ndarray], pools: Sequence[np.ndarray], counts: Sequence[int], name: str
) -> None:
    """Checks that every batch can be filled, whatever was drawn before.

    With one key that needs as many distinct values as rows. With two keys each row may block two others
    (one of the same patient, one with the same text), so the number of examples that share neither has
    to be larger; it is counted greedily.

    Args:
        keys: "patient" and "text" -> int64 [n].
        pools: the example indices of each pool.
        counts: rows of each pool in a batch.
        name: of the data, for the message.

    Raises:
        UserError: too few; says how many there are.
    """
    batch = sum(counts)
    for pool, count in zip(pools, counts, strict=True):
        # Patients of different pools are different, texts may be shared with the rows of other pools.
        for key, values in keys.items():
            needed = count if key == "patient" else batch
            there = len(np.unique(values[pool]))
            if there < needed:
                raise UserError(
                    f"data.distinct needs {needed} rows of different {key}s in a batch, but the training "
                    f"split of {name} has {there} {key}s: choose a smaller data.global_batch_size"
                )
        if len(keys) == 2:
            there, needed = _matched(np.stack([v[pool] for v in keys.values()])), batch + count - 1
            if there < needed:
                raise UserError(
                    f"data.distinct='patient_text' needs {needed} examples that share neither patient nor "
                    f"text to fill {count} rows in every case, but in the training split of {name} "
                    f"{there} were found: choose a smaller data.global_batch_size"
                )


def _matched(keys: np.ndarray) -> int:
    """Number of examples of a set that share no key, found greedily, rare keys first. `keys`: [2, n]."""
    sizes = [np.unique(row, return_inverse=True, return_counts=True)[1:] for row in keys]
    frequency = np.max([counts[inverse] for inverse, counts in sizes], axis=0)
    used: tuple[set[int], set[int]] = (set(), set())
    total = 0
    for first, second in keys[:, np.argsort(frequency, kind="stable")].T.tolist():
        if first not in used[0] and second not in used[1]:
            used[0].add(first)
            used[1].add(second)
            total += 1
    return total
