"""Input pipeline: `config.data` and built TFDS datasets to batches of numpy arrays.

A global batch is a pure function of (seed, step): an endless stream of index batches is fixed by the seed
(`order`), and each process prepares its own consecutive rows of a batch (`rows`). So the state of an
iterator is a step number, which stays valid for another number of processes or workers, and the
concatenated batches of P processes equal the batch of one process, row by row.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from medvlp_jax.data import row_images, samplers
from medvlp_jax.data import text as text_lib
from medvlp_jax.data.iterators import EvalBatches, TrainIterator
from medvlp_jax.data.mixture import Mixture
from medvlp_jax.data.options import DataOptions, data_options
from medvlp_jax.data.order import index_batches, make_pools
from medvlp_jax.data.row_texts import TextEncoder
from medvlp_jax.data.rows import BatchMaker
from medvlp_jax.data.source import Examples, Source, open_source
from medvlp_jax.data.studies import Studies, drawn_examples, index_studies, require_study_fields
from medvlp_jax.errors import UserError

__all__ = [
    "EvalBatches",
    "Source",
    "TrainIterator",
    "config_tokenizer",
    "eval_batches",
    "iter_texts",
    "open_source",
    "train_datasets",
    "train_iterator",
]

_TEXT_FIELDS = (
    "text",
    "findings",
    "impression",
    "label",
    "subject_id",
    "study_id",
    "image_id",
)


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
        text = example.get("text") or ""
        yield text_lib.clean_text(text) if clean else text


def train_datasets(config: Mapping[str, Any] | DataOptions) -> tuple[str, ...]:
    """Names of the datasets that training reads: one, those of the mixture, and that of the texts."""
    options = data_options(config)
    names = [*(options.mixture or (options.dataset,)), options.text_dataset]
    return tuple(dict.fromkeys(name for name in names if name))


def config_tokenizer(config: Mapping[str, Any] | DataOptions) -> text_lib.Tokenizer:
    """The tokenizer of `config.data.text`: the named one, or WordPiece trained on the train split (of
    all datasets of a mixture).

    Raises:
        UserError: it does not load, or the dataset is not built.
    """
    options = data_options(config)
    if options.text.tokenizer is not None:
        return text_lib.load_tokenizer(options.text.tokenizer)
    names = (options.text_dataset,) if options.text_dataset else train_datasets(options)
    texts = (
        text
        for name in names
        for text in iter_texts(
            name,
            options.train_split,
            options.data_dir,
            clean=options.text.clean,
            max_examples=options.max_examples,
        )
    )
    return text_lib.train_wordpiece(texts, options.text.vocab_size, options.text.lowercase)


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
        UserError: batch not divisible by the processes, split smaller than a batch, dataset missing, or
            an option that the data cannot serve.
    """
    options = data_options(config)
    _local_batch_size(options, process_count)
    texts = TextEncoder(options.text, tokenizer)
    source = _image_source(options)
    studies = _studies(source, options)
    pools = make_pools(source, studies, options)
    order = index_batches(source, pools, options, texts, seed, samplers.IMAGE_ORDER)
    reports, text_order = source, None
    if options.pairing == "unpaired":
        reports, text_pools = source.with_fields(_TEXT_FIELDS), pools
        if options.text_dataset:
            reports = _training_source(options, options.text_dataset, _TEXT_FIELDS)
            _require_same_labels(source, reports)
            text_pools = make_pools(reports, None, options)
        text_order = index_batches(reports, text_pools, options, texts, seed, samplers.TEXT_ORDER)
    texts.require_second(reports)
    maker = BatchMaker(
        options=options,
        texts=texts,
        images=row_images.ImageLoader(options.image, source, studies, seed),
        examples=source,
        reports=reports,
        text_order=text_order,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    return TrainIterator(order.map_with_index(maker.train), options, source, pools.size, seed)


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


def _image_source(options: DataOptions) -> Source | Mixture:
    """The training examples of one dataset or of a mixture."""
    fields = (*row_images.image_fields(options.image), *_TEXT_FIELDS)
    names = options.mixture or (options.dataset,)
    sources = [_training_source(options, name, fields) for name in names]
    for source in sources:
        row_images.require_pixels(source, options.image)
    joined = Mixture(sources) if options.mixture else sources[0]
    require_study_fields(joined, prior=options.image.prior, per_study=options.image.per_study)
    return joined


def _training_source(options: DataOptions, name: str, fields: Sequence[str]) -> Source:
    split, folder = options.train_split, options.data_dir
    return open_source(name, split, folder, fields=fields, max_examples=options.max_examples)


def _studies(source: Examples, options: DataOptions) -> Studies | None:
    """Images by study, where an option needs them."""
    needed = options.image.prior or options.image.per_study > 1
    return index_studies(source) if needed else None


def _require_same_labels(images: Examples, reports: Examples) -> None:
    if images.label_names != reports.label_names:
        raise UserError(
            f"data.text_dataset {reports.name} has labels {list(reports.label_names)}, but "
            f"{images.name} has {list(images.label_names)}: unpaired training compares them, so both "
            "need the same names in the same order"
        )


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

    Over all processes every example occurs exactly once (every study, with `image.per_study` > 1; its
    `example_index` is that of its first image); all processes get the same number of equally large
    batches. Rows that pad repeat an example and have `example_mask` 0 and `example_index` -1. There is
    one text per row, and neither a second text nor a second view.

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
    row_images.require_pixels(source, options.image)
    studies = _studies(source, options)
    maker = BatchMaker(
        options=options,
        # One text and one view of each: embeddings are compared row by row.
        texts=TextEncoder(dataclasses.replace(options.text, per_image=1, second=None), tokenizer),
        images=row_images.ImageLoader(
            dataclasses.replace(options.image, views=1), source, studies, None
        ),
        examples=source,
        reports=source,
        text_order=None,
        seed=0,
        process_index=process_index,
        process_count=process_count,
    )
    drawn = drawn_examples(source, studies, options.image.per_study)
    count = -(-len(drawn) // options.global_batch_size)
    padded = np.full(count * options.global_batch_size, -1, np.int64)
    padded[: len(drawn)] = drawn
    local: Any = padded.reshape(count, process_count, rows)[:, process_index]
    batches = grain.MapDataset.source(local).map(maker.evaluate)
    return EvalBatches(batches, options, source, len(drawn))
