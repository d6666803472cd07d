"""The rows of a batch from example indices: what one process prepares of a global batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data import samplers, transforms
from medvlp_jax.data import text as text_lib
from medvlp_jax.data.options import DataOptions
from medvlp_jax.data.row_images import ImageLoader
from medvlp_jax.data.row_texts import TextEncoder
from medvlp_jax.data.source import Examples
from medvlp_jax.types import Batch


def label_arrays(
    examples: Sequence[Mapping[str, Any]], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stored int8 labels (-2 missing) to float32 label [B, K] and mask [B, K]."""
    stored = np.full((len(examples), number), -2, np.int8)
    for row, example in enumerate(examples):
        if "label" in example:
            stored[row] = example["label"]
    mask = (stored != -2).astype(np.float32)
    return np.where(stored == -2, 0, stored).astype(np.float32), mask


def id_hashes(examples: Sequence[Mapping[str, Any]], indices: np.ndarray, field: str) -> np.ndarray:
    """Hashes of an id; rows without one get one of their own, so that no two share it."""
    values = []
    for example, index in zip(examples, indices, strict=True):
        own = f"{example.get('image_id') or ''}#{index}"
        values.append(text_lib.stable_id(example.get(field) or own))
    return np.array(values, np.int32)


@dataclasses.dataclass
class BatchMaker:
    """Prepares the rows of one process from indices; pickled into worker processes.

    Attributes:
        options: `config.data`.
        texts: chooses and tokenises.
        images: loads images of `examples`.
        examples: what the indices refer to.
        reports: examples of the text stream; `examples` unless unpaired.
        text_order: step -> indices [B] of `reports`; None = paired.
        seed: of the run.
        process_index, process_count: which consecutive share of each global batch.
    """

    options: DataOptions
    texts: TextEncoder
    images: ImageLoader
    examples: Examples
    reports: Examples
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
        examples = self.examples.read(indices[local])
        if self.text_order is None:
            text_examples = examples
        else:
            text_examples = self.reports.read(np.asarray(self.text_order[step])[local])
        images = self.images.rows(examples, indices[local], first)
        texts = []
        for row in range(rows):
            # A generator costs as much as the tokens of a text that was seen before.
            random = self.texts.is_random
            rng = samplers.row_rng(self.seed, samplers.TEXT_SAMPLE, first + row) if random else None
            texts.append(self.texts.choose(text_examples[row], rng))
        batch = self._batch(images, texts, examples, text_examples, indices[local])
        return {**batch, "example_mask": np.ones(rows, np.float32)}

    def evaluate(self, indices: np.ndarray) -> Batch:
        """Local batch of fixed views; an index of -1 marks a row that only pads."""
        transforms.single_threaded_opencv()
        real = indices >= 0
        # Padding repeats a real example: all-zero rows would give NaN in attention and norms.
        padded = np.where(real, indices, self.images.first)
        examples = self.examples.read(padded)
        images = self.images.rows(examples, padded, 0)
        texts = [self.texts.choose(example, None) for example in examples]
        batch = self._batch(images, texts, examples, examples, indices)
        return {**batch, "example_mask": real.astype(np.float32)}

    def _batch(
        self,
        images: dict[str, np.ndarray],
        texts: list[list[str]],
        examples: list[dict[str, Any]],
        text_examples: list[dict[str, Any]],
        indices: np.ndarray,
    ) -> Batch:
        number = len(self.examples.label_names)
        label, label_mask = label_arrays(examples, number)
        if text_examples is examples:
            text_label, text_label_mask = label.copy(), label_mask.copy()
        else:
            text_label, text_label_mask = label_arrays(text_examples, number)
        return {
            **images,
            **self.texts.rows(texts),
            **self.texts.second_rows(text_examples, texts),
            "label": label,
            "label_mask": label_mask,
            "text_label": text_label,
            "text_label_mask": text_label_mask,
            "subject_id": id_hashes(examples, indices, "subject_id"),
            "study_id": id_hashes(examples, indices, "study_id"),
            "example_index": indices.astype(np.int32),
        }
