"""TFDS builder of MIMIC 5x200: images of the training set that show one of five findings alone."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import ClassVar

from medvlp_jax.data.datasets.mimic_5x200 import SPEC as MIMIC_5X200
from medvlp_jax.data.spec import DatasetSpec
from tfds_builders.exclusive_positives import FiveClassConfig, five_class_corpus, option_files
from tfds_builders.manual_builder import Corpus
from tfds_builders.mimic_cxr.mimic_cxr import MimicCxrFiles


@dataclasses.dataclass
class Mimic5x200Config(FiveClassConfig):
    """Options of MIMIC 5x200; consolidation without any other finding is rare in MIMIC-CXR, so only the other
    four classes must be absent unless `exclusive` says otherwise."""

    exclusive: str = "five"


class Mimic5x200(MimicCxrFiles):
    """200 frontal radiographs of each class with their reports."""

    name = "mimic_5x200"  # TFDS would make mimic5x200 of the class name
    SPEC: ClassVar[DatasetSpec] = MIMIC_5X200
    CONFIG = Mimic5x200Config
    _settings: Mimic5x200Config

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return super().table_files(folder) + option_files(self._settings.ids, "ids")

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        corpus = five_class_corpus(self.read_tables(folder), self._settings)
        return self.drop_without_report(folder, corpus)
