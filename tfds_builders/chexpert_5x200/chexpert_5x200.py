"""TFDS builder of CheXpert 5x200: images of train.csv that show one of five findings alone."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import ClassVar

from medvlp_jax.data.datasets.chexpert_5x200 import SPEC as CHEXPERT_5X200
from medvlp_jax.data.spec import DatasetSpec
from tfds_builders.chexpert.chexpert import ChexpertFiles, ChexpertFilesConfig
from tfds_builders.exclusive_positives import FiveClassConfig, five_class_corpus, option_files
from tfds_builders.manual_builder import Corpus


@dataclasses.dataclass
class Chexpert5x200Config(ChexpertFilesConfig, FiveClassConfig):
    """Options of CheXpert 5x200: those of its files and of the choice."""

    CHOICES: ClassVar = {**ChexpertFilesConfig.CHOICES, **FiveClassConfig.CHOICES}


class Chexpert5x200(ChexpertFiles):
    """200 frontal radiographs of each class, with reports where CheXpert Plus is there."""

    name = "chexpert_5x200"  # TFDS would make chexpert5x200 of the class name
    SPEC: ClassVar[DatasetSpec] = CHEXPERT_5X200
    CONFIG = Chexpert5x200Config
    _settings: Chexpert5x200Config

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return super().table_files(folder) + option_files(self._settings.ids, "ids")

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        return five_class_corpus(super().read_corpus(folder), self._settings)
