"""TFDS builder of NCT-CRC-HE-100K and CRC-VAL-HE-7K from the folders of TIFF files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from medvlp_jax.data.datasets.crc_100k import SPEC as CRC_100K
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.official_layout import Needed, require_layout

_TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_TRAIN = {"normalized": "NCT-CRC-HE-100K", "original": "NCT-CRC-HE-100K-NONORM"}
_TEST = "CRC-VAL-HE-7K"
_ZENODO = "https://zenodo.org/records/1214456/files"
_MD5 = {
    "NCT-CRC-HE-100K": "6fd702d11df6292bc054397ae038a464",
    "NCT-CRC-HE-100K-NONORM": "035777cf327776a71a05c95da6d6325f",
    _TEST: "2fd1651b4f94ebd818ebf90ad2b6ce06",
}


@dataclasses.dataclass
class Crc100kConfig(ManualConfig):
    """Options of NCT-CRC-HE-100K.

    Attributes:
        stain: "normalized" (Macenko), or "original" takes NCT-CRC-HE-100K-NONORM for training.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "stain": tuple(_TRAIN)}
    VARIANTS: ClassVar = {name: {"stain": name} for name in _TRAIN}

    stain: str = "normalized"


class Crc100k(ManualBuilder):
    """Patches with their kind of tissue."""

    name = "crc_100k"  # TFDS would make crc100k of the class name
    SPEC: ClassVar[DatasetSpec] = CRC_100K
    CONFIG = Crc100kConfig
    _settings: Crc100kConfig

    @classmethod
    def downloads(cls, settings: ManualConfig) -> tuple[Download, ...]:
        assert isinstance(settings, Crc100kConfig)
        return tuple(
            Download(
                url=f"{_ZENODO}/{name}.zip?download=1",
                path=f"{name}.zip",
                checksum=f"md5:{_MD5[name]}",
                unpack=True,
            )
            for name in (_TRAIN[settings.stain], _TEST)
        )

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        source = f"patches, from {self.SPEC.homepage}"
        names = [
            f"{place}/{tissue}"
            for place in (_TRAIN[self._settings.stain], _TEST)
            for tissue in _TISSUES
        ]
        places = require_layout(folder, self.SPEC, [Needed((name,), source) for name in names])
        records: list[Record] = []
        for number, place in enumerate(places):
            split, kind = divmod(number, len(_TISSUES))
            records += _read_folder(folder, place, self.SPEC.splits[split], kind)
        counts = Counter((r.split, int(r.label.argmax())) for r in records)
        return Corpus(
            records=records,
            table=folder / _TRAIN[self._settings.stain],
            label_names=self.SPEC.label_names,
            expected=self.SPEC.expected_counts,
            notes=tuple(
                f"{split}: "
                + ", ".join(f"{tissue} {counts[split, k]}" for k, tissue in enumerate(_TISSUES))
                for split in self.SPEC.splits
            ),
            patient_hint="patients are not named; by its authors, the two sets share none",
        )


def _read_folder(
    folder: pathlib.Path, place: pathlib.Path, split: str, kind: int
) -> Iterator[Record]:
    """Patches of one kind of tissue.

    Raises:
        UserError: none.
    """
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in (".tif", ".tiff"))
    if not files:
        raise UserError(f"{place} holds no .tif file; unpack the archive again")
    label = (np.arange(len(_TISSUES)) == kind).astype(np.int8)
    for file in files:
        yield Record(
            key=f"{split}/{file.stem}",
            image=file.relative_to(folder).as_posix(),
            split=split,
            subject_id="",
            label=label,
        )
