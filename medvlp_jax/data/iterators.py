"""Iterators over prepared batches: threads, worker processes, and a state that is the step."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grain
from absl import flags

from medvlp_jax.data.options import DataOptions
from medvlp_jax.data.source import Examples, Source
from medvlp_jax.errors import UserError
from medvlp_jax.types import Batch


class TrainIterator:
    """Endless iterator of local training batches whose state is the step.

    Attributes:
        steps_per_epoch: global batches in one pass over the split.
        num_examples: examples in the split (studies, where a row is a study).
        label_names: names of the K labels.
    """

    def __init__(
        self, dataset: Any, options: DataOptions, source: Examples, num_examples: int, seed: int
    ):
        self._dataset = dataset
        self._options = options
        self._iterator: Any = None
        self._step = 0
        self._lock = threading.Lock()
        self.num_examples = num_examples
        self.steps_per_epoch = num_examples // options.global_batch_size
        self.label_names = source.label_names
        self._identity = {
            "dataset": source.name,
            "split": source.split,
            "num_examples": num_examples,
            "global_batch_size": options.global_batch_size,
            "seed": seed,
            **_order_options(options),
        }

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> Batch:
        with self._lock:
            if self._iterator is None:
                self._iterator = self._start(self._step)
            batch = next(self._iterator)
            self._step += 1
        return batch

    def _start(self, step: int) -> Any:
        """A Grain iterator whose first element is the batch of `step`."""
        options = self._options
        remaining = self._dataset[step:]
        threads = 1 if options.workers else options.threads
        read = grain.ReadOptions(
            num_threads=threads,
            prefetch_buffer_size=max(options.prefetch, threads) if threads else 0,
        )
        stream = remaining.to_iter_dataset(read)
        if options.workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads debug flags before it starts a worker and refuses unparsed ones; only
                # programs that start through absl.app have parsed them.
                flags.FLAGS.mark_as_parsed()
            per_worker = max(1, options.prefetch // options.workers)
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=options.workers, per_worker_buffer_size=per_worker
                )
            )
        return iter(stream)

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: the step whose batch comes next, and what it refers to."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at a position from `get_state`, also of another number of processes or workers.

        Raises:
            UserError: the state belongs to other data, another seed, batch size or order.
        """
        names = [k for k in {**self._identity, **state} if k != "step"]
        different = {k: state.get(k) for k in names if state.get(k) != self._identity.get(k)}
        if different:
            raise UserError(
                f"the checkpoint's data position has {json.dumps(different)}, this run has "
                f"{json.dumps({k: self._identity.get(k) for k in different})}: the order of examples "
                "would change; resume with the old values or start in a new workdir"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops threads and worker processes; the next batch would start them again."""
        with self._lock:
            if self._iterator is not None:
                self._iterator.close()
                self._iterator = None


def _order_options(options: DataOptions) -> dict[str, Any]:
    """Options that change which examples form a batch, where they are not the default: states of
    runs without them stay valid."""
    chosen: dict[str, Any] = {}
    if options.distinct != "none":
        chosen["distinct"] = options.distinct
    if options.mixture:
        chosen["mixture"] = dict(options.mixture)
    return chosen


class EvalBatches:
    """Sized iterable over the local batches of a split; each iteration starts at the beginning.

    Attributes:
        num_examples: examples in the split (studies, where a row is a study), over all processes.
        label_names: names of the K labels.
        source: the examples themselves, e.g. for raw texts, boxes or masks by `example_index`.
    """

    def __init__(self, dataset: Any, options: DataOptions, source: Source, num_examples: int):
        self._dataset = dataset
        self._options = options
        self.num_examples = num_examples
        self.label_names = source.label_names
        self.source = source

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        threads = self._options.threads
        buffer = max(self._options.prefetch, threads) if threads else 0
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        iterator = iter(self._dataset.to_iter_dataset(read))
        try:
            yield from iterator
        finally:
            iterator.close()
