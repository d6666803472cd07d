"""TFDS builder of MedNLI from the official JSONL files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medvlp_jax.data.datasets.mednli import SPEC as MEDNLI
from medvlp_jax.data.spec import DatasetSpec
from tfds_builders.sentence_pairs import SentencePairs


class Mednli(SentencePairs):
    """Pairs of sentences of clinical notes."""

    SPEC: ClassVar[DatasetSpec] = MEDNLI
    FILES: ClassVar[Mapping[str, str]] = {
        "train": "mli_train_v1.jsonl",
        "validation": "mli_dev_v1.jsonl",
        "test": "mli_test_v1.jsonl",
    }
    PAIR_ID = "pairID"
