"""Datasets of sentence pairs for natural language inference, in the JSONL form of SNLI and MedNLI."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.errors import UserError
from tfds_builders.json_lines import read_json_lines, text_of
from tfds_builders.manual_builder import Corpus, ManualBuilder, Record
from tfds_builders.official_layout import Needed, require_layout

LABELS = ("entailment", "neutral", "contradiction")
"""One of the three is 1, the others 0."""


class SentencePairs(ManualBuilder, skip_registration=True):
    """Premise and hypothesis without an image.

    Attributes:
        FILES: split -> name of its file.
        PAIR_ID: key that numbers the pairs.
    """

    FILES: ClassVar[Mapping[str, str]]
    PAIR_ID: ClassVar[str]

    def media_features(self) -> dict[str, Any]:
        return {}

    def read_media(
        self, folder: pathlib.Path, record: Record
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        del folder, record
        return {}, (0, 0)

    def extra_features(self) -> dict[str, Any]:
        return {"text_2": tfds.features.Text()}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        source = f"pairs, from {self.SPEC.homepage}"
        needed = [Needed((name,), source) for name in self.FILES.values()]
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        tables = self.table_files(folder)
        records = [
            record
            for split, table in zip(self.FILES, tables, strict=True)
            for record in self._read(split, table)
        ]
        counts: dict[str, Counter[str]] = {split: Counter() for split in self.FILES}
        for record in records:
            counts[record.split][LABELS[int(record.label.argmax())]] += 1
        return Corpus(
            records=records,
            table=tables[0],
            label_names=LABELS,
            expected=self.SPEC.expected_counts,
            notes=tuple(
                f"{split}: " + ", ".join(f"{name} {found[name]}" for name in LABELS)
                for split, found in counts.items()
            ),
            patient_hint="the files do not name the patients; the published split is kept",
        )

    def _read(self, split: str, table: pathlib.Path) -> Iterator[Record]:
        """Pairs of one file.

        Raises:
            UserError: an unknown label, or a blank sentence.
        """
        keys = (self.PAIR_ID, "sentence1", "sentence2", "gold_label")
        for line, entry in read_json_lines(table, keys):
            texts = [text_of(entry, key) for key in ("sentence1", "sentence2")]
            label = text_of(entry, "gold_label").lower()
            if label not in LABELS:
                raise UserError(
                    f"{table} line {line}: gold_label is {entry['gold_label']!r}, expected "
                    f"{', '.join(LABELS)}"
                )
            if not all(texts):
                raise UserError(
                    f"{table} line {line}: a sentence is blank; download the file again"
                )
            yield Record(
                key=f"{split}/{text_of(entry, self.PAIR_ID)}",
                image="",
                split=split,
                subject_id="",
                label=np.asarray([label == name for name in LABELS], np.int8),
                fields={"text": texts[0], "text_2": texts[1]},
            )
