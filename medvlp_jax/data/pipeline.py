"""Input pipeline: built TFDS datasets to batches of numpy arrays (the one place that reads with
Grain and TFDS).

A global batch is a pure function of (seed, step): one Grain index stream per epoch is shuffled, cut
into global batches, and each process prepares its own consecutive rows of the batch. So the state of
an iterator is a step number, which stays valid for another number of processes or workers, and the
concatenated batches of P processes equal the batch of one process, row by row.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from medvlp_jax.data import text as text_lib
from medvlp_jax.data import transforms
from medvlp_jax.data.options import DataOptions, data_options
from medvlp_jax.data.paths import dataset_folder
from medvlp_jax.errors import UserError
from medvlp_jax.types import Batch

# Streams of random numbers of one run; a stream never shares numbers with another.
_IMAGE_ORDER, _TEXT_ORDER, _IMAGE_AUGMENT, _TEXT_SAMPLE = range(4)

_TRAIN_FIELDS = (
    "image",
    "text",
    "findings",
    "impression",
    "label",
    "subject_id",
    "study_id",
    "image_id",
)
_CACHED_TEXTS = 200_000


class Source:
    """Random access to the examples of one split of a built dataset.

    `source[i]` is a dict of the stored features: `image` (and `mask`) as encoded bytes, strings as `str`,
    numbers as numpy. `source[[i, j]]`-style batched reading is `source.read(indices)`.

    Attributes:
        name: `name` or `name/config`.
        split: TFDS split, as asked for.
        label_names: names of the K labels; empty when the dataset has none.
        metadata: what the builder recorded (counts of dropped rows, split hash, options ...).
        folder: where the dataset lies.
    """

    def __init__(self, reader: Any, decode: Any, info: Any, split: str, length: int):
        config = info.config_name
        self.name: str = f"{info.name}/{config}" if config else info.name
        self.split = split
        # Not dict(metadata): TFDS loads it lazily in `keys`, which dict() does not call.
        self.metadata: dict[str, Any] = {k: info.metadata[k] for k in (info.metadata or {}).keys()}  # noqa: SIM118
        self.label_names: tuple[str, ...] = tuple(self.metadata.get("label_names", ()))
        self.folder: str = str(info.data_dir)
        self._reader = reader
        self._decode = decode
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), 64):
            yield from self.read(range(start, min(start + 64, len(self))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads several examples in one call.

        Raises:
            IndexError: an index outside [0, len).
        """
        wanted = [int(i) for i in indices]
        for i in wanted:
            if not 0 <= i < self._length:
                raise IndexError(f"example {i} of {self.name} {self.split}: it has {self._length}")
        return [_plain(self._decode(record)) for record in self._reader.__getitems__(wanted)]


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
    """TFDS hands out text as bytes; images stay bytes."""
    plain: dict[str, Any] = {}
    for key, value in example.items():
        if isinstance(value, bytes) and key not in ("image", "mask"):
            plain[key] = value.decode("utf-8")
        elif isinstance(value, dict):
            plain[key] = _plain(value)
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            plain[key] = [v.decode("utf-8") for v in value]
        else:
            plain[key] = value
    return plain


def open_source(
    dataset: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    fields: Sequence[str] | None = None,
    max_examples: int | None = None,
) -> Source:
    """Opens one split of a built dataset for random access.

    Args:
        dataset: `name`, `name/config` or `name/config/version`; see `paths.dataset_folder`.
        split: split name or TFDS slice, e.g. `"train[:10%]"`.
        data_dir: data directory; None = `TFDS_DATA_DIR`, else `./data`.
        fields: features to decode; None = all. Names that the dataset lacks are ignored.
        max_examples: only the first so many examples.

    Raises:
        UserError: dataset not built, damaged, or without that split.
    """
    folder = dataset_folder(dataset, data_dir)
    try:
        builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # json, protobuf and TFDS errors of a damaged folder
        raise UserError(f"{folder} is not a readable dataset ({error}); build it again") from error
    known = sorted(builder.info.splits)
    base = split.partition("[")[0]
    if base not in known:
        raise UserError(f"dataset {dataset} has no split {base!r}; it has {', '.join(known)}")
    features = builder.info.features
    names = sorted(features) if fields is None else [f for f in fields if f in features]
    # `as_data_source` cannot leave features out without TensorFlow, so records are decoded here.
    chosen = tfds.features.FeaturesDict({name: features[name] for name in names})
    raw = {k: tfds.decode.SkipDecoding() for k in ("image", "mask") if k in names}
    try:
        reader = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        length = len(reader)
    except Exception as error:
        raise UserError(
            f"split {split!r} of {dataset} cannot be read ({error}); check the slice, or build the "
            "dataset again"
        ) from error
    if max_examples is not None:
        length = min(length, max_examples)
    decode = functools.partial(chosen.deserialize_example_np, decoders=raw)
    return Source(reader, decode, builder.info, split, length)


def iter_texts(
    dataset: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    clean: bool = True,
    max_examples: int | None = None,
) -> Iterator[str]:
    """The texts of a split in order, e.g. to train a tokenizer."""
    source = open_source(dataset, split, data_dir, fields=("text",), max_examples=max_examples)
    for example in source:
        yield text_lib.clean_text(example["text"]) if clean else example["text"]


def config_tokenizer(config: Mapping[str, Any] | DataOptions) -> text_lib.Tokenizer:
    """The tokenizer of `config.data.text`: the named one, or WordPiece trained on the train split.

    Raises:
        UserError: it does not load, or the dataset is not built.
    """
    options = data_options(config)
    if options.text.tokenizer is not None:
        return text_lib.load_tokenizer(options.text.tokenizer)
    texts = iter_texts(
        options.text_dataset or options.dataset,
        options.train_split,
        options.data_dir,
        clean=options.text.clean,
        max_examples=options.max_examples,
    )
    return text_lib.train_wordpiece(texts, options.text.vocab_size, options.text.lowercase)


# ---------------------------------------------------------------------------------------------------
# From examples to rows


_RANDOM_SAMPLES = ("section", "sentence", "sentences")
"""Values of `text.sample` that choose a part at random in training."""


class _TextEncoder:
    """Chooses, cleans and tokenises the text of an example; remembers what it tokenised."""

    def __init__(self, options: DataOptions, tokenizer: text_lib.Tokenizer):
        self.options = options.text
        self.tokenizer = tokenizer
        self._cache: dict[str, tuple[np.ndarray, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def choose(self, example: Mapping[str, Any], rng: np.random.Generator | None) -> str:
        """The text of one row; `rng` None (evaluation) never chooses a random part."""
        clean = text_lib.clean_text if self.options.clean else str
        report = clean(example.get("text", ""))
        sample = self.options.sample
        if sample == "report" or (rng is None and sample in _RANDOM_SAMPLES):
            return report
        found = {k: clean(example.get(k) or "") for k in ("findings", "impression")}
        if not any(found.values()):
            found = text_lib.split_sections(report)
        present = [found[k] for k in ("findings", "impression") if found.get(k)]
        if sample in ("sentence", "sentences"):
            # Of findings and impression where they can be told apart: headers, indication and
            # technique say nothing about the image.
            choices = text_lib.split_sentences("\n\n".join(present) or report)
            if sample == "sentences" and choices and rng:
                kept = rng.permutation(len(choices))[: rng.integers(1, len(choices) + 1)]
                choices = [" ".join(choices[index] for index in sorted(kept))]
        elif sample == "section":
            choices = present
        else:
            return found.get(sample) or report
        return choices[int(rng.integers(len(choices)))] if choices and rng else report

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokens of B texts, int32 [B, L], and `text_id` int32 [B]."""
        missing = list(dict.fromkeys(t for t in texts if t not in self._cache))
        length = self.options.max_length
        fresh: dict[str, tuple[np.ndarray, int]] = {}
        if missing:
            pieces = text_lib.encode_pieces(self.tokenizer, missing, length)
            for text, piece in zip(missing, pieces, strict=True):
                fresh[text] = (piece, text_lib.stable_id(text_lib.normalise_for_id(text)))
            if len(self._cache) < _CACHED_TEXTS:
                self._cache.update(fresh)
        shape = (len(texts), length)
        batch = {
            "input_ids": np.full(shape, self.tokenizer.pad_token_id, np.int32),
            "attention_mask": np.zeros(shape, np.int32),
            "word_ids": np.full(shape, -1, np.int32),
            "text_id": np.zeros(len(texts), np.int32),
        }
        for row, text in enumerate(texts):
            piece, text_id = fresh.get(text) or self._cache[text]
            width = piece.shape[1]
            batch["input_ids"][row, :width] = piece[0]
            batch["word_ids"][row, :width] = piece[1]
            batch["attention_mask"][row, :width] = 1
            batch["text_id"][row] = text_id
        return batch


def _labels(examples: Sequence[Mapping[str, Any]], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored int8 labels (-2 missing) to float32 label [B, K] and mask [B, K]."""
    stored = np.full((len(examples), number), -2, np.int8)
    for row, example in enumerate(examples):
        if "label" in example:
            stored[row] = example["label"]
    mask = (stored != -2).astype(np.float32)
    return np.where(stored == -2, 0, stored).astype(np.float32), mask


def _ids(examples: Sequence[Mapping[str, Any]], indices: np.ndarray, field: str) -> np.ndarray:
    """Hashes of an id; rows without one get one of their own, so that no two share it."""
    values = []
    for example, index in zip(examples, indices, strict=True):
        own = f"{example.get('image_id') or ''}#{index}"
        values.append(text_lib.stable_id(example.get(field) or own))
    return np.array(values, np.int32)


def _row_rng(seed: int, stream: int, position: int) -> np.random.Generator:
    """Generator of one row: a function of the seed, the purpose and the row's global position."""
    return np.random.Generator(np.random.Philox(key=[seed, position], counter=[0, 0, 0, stream]))


@dataclasses.dataclass
class _BatchMaker:
    """Prepares the rows of one process from indices; pickled into worker processes."""

    options: DataOptions
    texts: _TextEncoder
    images: Source
    reports: Source
    text_order: Any
    seed: int
    process_index: int
    process_count: int

    def train(self, step: int, indices: np.ndarray) -> Batch:
        """Local batch of a step from the global batch's example indices [B]."""
        transforms.single_threaded_opencv()
        rows = self.options.global_batch_size // self.process_count
        local = slice(self.process_index * rows, (self.process_index + 1) * rows)
        first = step * self.options.global_batch_size + local.start
        examples = self.images.read(indices[local])
        if self.text_order is None:
            text_examples = examples
        else:
            text_examples = self.reports.read(np.asarray(self.text_order[step])[local])
        images = []
        texts = []
        for row in range(rows):
            rng = _row_rng(self.seed, _IMAGE_AUGMENT, first + row)
            images.append(transforms.train_image(examples[row]["image"], self.options.image, rng))
            rng = _row_rng(self.seed, _TEXT_SAMPLE, first + row)
            texts.append(self.texts.choose(text_examples[row], rng))
        mask = np.ones(rows, np.float32)
        return self._batch(images, texts, examples, text_examples, indices[local], mask)

    def evaluate(self, indices: np.ndarray) -> Batch:
        """Local batch of fixed views; an index of -1 marks a row that only pads."""
        transforms.single_threaded_opencv()
        real = indices >= 0
        # Padding repeats a real example: all-zero rows would give NaN in attention and norms.
        examples = self.images.read(np.where(real, indices, 0))
        images = [transforms.eval_image(e["image"], self.options.image) for e in examples]
        texts = [self.texts.choose(e, None) for e in examples]
        return self._batch(images, texts, examples, examples, indices, real.astype(np.float32))

    def _batch(
        self,
        images: list[np.ndarray],
        texts: list[str],
        examples: list[dict[str, Any]],
        text_examples: list[dict[str, Any]],
        indices: np.ndarray,
        mask: np.ndarray,
    ) -> Batch:
        number = len(self.images.label_names)
        label, label_mask = _labels(examples, number)
        if text_examples is examples:
            text_label, text_label_mask = label.copy(), label_mask.copy()
        else:
            text_label, text_label_mask = _labels(text_examples, number)
        return {
            "image": np.stack(images),
            **self.texts.encode(texts),
            "label": label,
            "label_mask": label_mask,
            "text_label": text_label,
            "text_label_mask": text_label_mask,
            "subject_id": _ids(examples, indices, "subject_id"),
            "study_id": _ids(examples, indices, "study_id"),
            "example_index": indices.astype(np.int32),
            "example_mask": mask,
        }


# ---------------------------------------------------------------------------------------------------
# Order of the examples


def _order_seed(seed: int, stream: int) -> int:
    """Seed of a shuffle; hashed, because Grain shuffles epoch e with seed + e, and the orders of
    the runs with seeds 0 and 1 would otherwise be each other's, one epoch apart."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def _shuffled_batches(examples: int, batch: int, seed: int, stream: int) -> Any:
    """Endless Grain dataset of global batches of indices: every epoch is a new permutation, cut to
    whole batches so that no example occurs twice in a batch."""
    order = grain.MapDataset.range(examples).shuffle(seed=_order_seed(seed, stream))
    return order[: examples // batch * batch].repeat().batch(batch)


class _Balanced:
    """Index of each position when labels are balanced: a new draw per epoch.

    Each label (and "no positive label") is a group of equal total weight; an example belongs to its
    rarest group. Systematic sampling makes the number of occurrences of an example the rounded-up or
    rounded-down expected one, so the common examples still occur about once.
    """

    def __init__(self, source: Source, seed: int, stream: int):
        labels = np.stack([e["label"] for e in source]) if source.label_names else None
        if labels is None or not labels.size:
            raise UserError(
                f"data.label_balance=True needs labels, and {source.name} has none: set it to False"
            )
        positive = np.concatenate([labels == 1, ~(labels == 1).any(axis=1, keepdims=True)], axis=1)
        sizes = positive.sum(axis=0)
        rarity = np.where(positive, sizes, len(labels) + 1)
        group = rarity.argmin(axis=1)
        occupied = np.bincount(group, minlength=positive.shape[1])
        self.weights = 1.0 / occupied[group] / np.count_nonzero(occupied)
        self.seed, self.stream = seed, stream
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __call__(self, position: int, _: Any) -> int:
        number = len(self.weights)
        epoch, place = divmod(position, number)
        held = self._epoch
        if held[0] != epoch:
            rng = _row_rng(_order_seed(self.seed, self.stream), self.stream, epoch)
            ticks = (np.arange(number) + rng.random()) / number
            shuffle = rng.permutation(number)
            edges = np.cumsum(self.weights[shuffle])
            picks = shuffle[np.minimum(np.searchsorted(edges, ticks), number - 1)]
            held = (epoch, rng.permutation(picks))
            self._epoch = held
        return int(held[1][place])


def _index_batches(source: Source, options: DataOptions, seed: int, stream: int) -> Any:
    batch = options.global_batch_size
    if not options.label_balance:
        return _shuffled_batches(len(source), batch, seed, stream)
    draw = _Balanced(source, seed, stream)
    return grain.MapDataset.range(len(source)).repeat().map_with_index(draw).batch(batch)


# ---------------------------------------------------------------------------------------------------
# Iterators


class TrainIterator:
    """Endless iterator of local training batches whose state is the step.

    Attributes:
        steps_per_epoch: global batches in one pass over the split.
        num_examples: examples in the split.
        label_names: names of the K labels.
    """

    def __init__(self, dataset: Any, options: DataOptions, source: Source, seed: int):
        self._dataset = dataset
        self._options = options
        self._iterator: Any = None
        self._step = 0
        self._lock = threading.Lock()
        self.num_examples = len(source)
        self.steps_per_epoch = len(source) // options.global_batch_size
        self.label_names = source.label_names
        self._identity = {
            "dataset": source.name,
            "split": source.split,
            "num_examples": len(source),
            "global_batch_size": options.global_batch_size,
            "seed": seed,
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
            UserError: the state belongs to other data, another seed or batch size.
        """
        different = {k: state.get(k) for k, v in self._identity.items() if state.get(k) != v}
        if different:
            raise UserError(
                f"the checkpoint's data position has {json.dumps(different)}, this run has "
                f"{json.dumps({k: self._identity[k] for k in different})}: the order of examples "
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


def train_iterator(
    config: Mapping[str, Any] | DataOptions,
    tokenizer: text_lib.Tokenizer,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Iterator of the local rows of the training batches.

    Args:
        config: `config.data`.
        tokenizer: from `data.text`.
        seed: seed of order, augmentation and text sampling.
        process_index: which consecutive share of each global batch; `jax.process_index()`.
        process_count: `jax.process_count()`.

    Raises:
        UserError: batch not divisible by the processes, split smaller than a batch, dataset missing.
    """
    options = data_options(config)
    _local_batch_size(options, process_count)
    source = _training_source(options, options.dataset)
    reports, text_order = source, None
    if options.pairing == "unpaired":
        if options.text_dataset:
            reports = _training_source(options, options.text_dataset)
            _require_same_labels(source, reports)
        text_order = _index_batches(reports, options, seed, _TEXT_ORDER)
    maker = _BatchMaker(
        options=options,
        texts=_TextEncoder(options, tokenizer),
        images=source,
        reports=reports,
        text_order=text_order,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    batches = _index_batches(source, options, seed, _IMAGE_ORDER).map_with_index(maker.train)
    return TrainIterator(batches, options, source, seed)


def _local_batch_size(options: DataOptions, process_count: int) -> int:
    """Rows per process.

    Raises:
        UserError: the global batch does not divide.
    """
    batch = options.global_batch_size
    if batch % process_count:
        lower = batch // process_count * process_count
        raise UserError(
            f"config key data.global_batch_size={batch} does not divide by {process_count} processes; "
            f"use {lower or process_count} or {lower + process_count}"
        )
    return batch // process_count


def _training_source(options: DataOptions, dataset: str) -> Source:
    source = open_source(
        dataset,
        options.train_split,
        options.data_dir,
        fields=_TRAIN_FIELDS,
        max_examples=options.max_examples,
    )
    if len(source) < options.global_batch_size:
        raise UserError(
            f"split {options.train_split!r} of {dataset} has {len(source)} examples, fewer than one "
            f"batch: set data.global_batch_size to {max(len(source), 1)} or less (it is "
            f"{options.global_batch_size})"
        )
    return source


def _require_same_labels(images: Source, reports: Source) -> None:
    if images.label_names != reports.label_names:
        raise UserError(
            f"data.text_dataset {reports.name} has labels {list(reports.label_names)}, but "
            f"{images.name} has {list(images.label_names)}: unpaired training compares them, so both "
            "need the same names in the same order"
        )


class EvalBatches:
    """Sized iterable over the local batches of a split; each iteration starts at the beginning.

    Attributes:
        num_examples: examples in the split, over all processes.
        label_names: names of the K labels.
        source: the examples themselves, e.g. for raw texts, boxes or masks by `example_index`.
    """

    def __init__(self, dataset: Any, options: DataOptions, source: Source):
        self._dataset = dataset
        self._options = options
        self.num_examples = len(source)
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


def eval_batches(
    config: Mapping[str, Any] | DataOptions,
    tokenizer: text_lib.Tokenizer,
    split: str,
    process_index: int = 0,
    process_count: int = 1,
    *,
    dataset: str | None = None,
) -> EvalBatches:
    """Batches of fixed views of a whole split, in order.

    Over all processes every example occurs exactly once; all processes get the same number of equally
    large batches. Rows that pad repeat an example and have `example_mask` 0 and `example_index` -1.

    Args:
        config: `config.data`.
        tokenizer: from `data.text`.
        split: split name or TFDS slice.
        process_index: which consecutive share of each global batch.
        process_count: number of processes.
        dataset: another dataset than `config.data.dataset`.

    Raises:
        UserError: batch not divisible by the processes, dataset or split missing or empty.
    """
    options = data_options(config)
    rows = _local_batch_size(options, process_count)
    source = open_source(
        dataset or options.dataset,
        split,
        options.data_dir,
        max_examples=options.max_examples,
    )
    if not len(source):
        raise UserError(f"split {split!r} of {source.name} is empty: choose another split")
    maker = _BatchMaker(
        options=options,
        texts=_TextEncoder(options, tokenizer),
        images=source,
        reports=source,
        text_order=None,
        seed=0,
        process_index=process_index,
        process_count=process_count,
    )
    count = -(-len(source) // options.global_batch_size)
    padded = np.full(count * options.global_batch_size, -1, np.int64)
    padded[: len(source)] = np.arange(len(source))
    local: Any = padded.reshape(count, process_count, rows)[:, process_index]
    batches = grain.MapDataset.source(local).map(maker.evaluate)
    return EvalBatches(batches, options, source)
