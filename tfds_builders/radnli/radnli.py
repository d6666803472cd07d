"""TFDS builder of RadNLI from the official JSONL files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medvlp_jax.data.datasets.radnli import SPEC as RADNLI
from medvlp_jax.data.spec import DatasetSpec
from tfds_builders.sentence_pairs import SentencePairs


class Radnli(SentencePairs):
    """Pairs of sentences of radiology reports."""

    SPEC: ClassVar[DatasetSpec] = RADNLI
    FILES: ClassVar[Mapping[str, str]] = {
        "validation": "radnli_dev_v1.jsonl",
        "test": "radnli_test_v1.jsonl",
    }
    PAIR_ID = "pair_id"
