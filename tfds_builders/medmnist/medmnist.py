"""TFDS builder of MedMNIST v2 from the npz files on Zenodo: images, and volumes as slices."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from medvlp_jax.data.datasets.medmnist import SPEC as MEDMNIST
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.medmnist.npz_rows import NpzRows
from tfds_builders.medmnist.sets import SETS
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.stored_volumes import volume_features, volume_values

_SHORT = {"train": "train", "validation": "val", "test": "test"}

_ZENODO = "https://zenodo.org/records/10519652/files"


@dataclasses.dataclass
class MedmnistConfig(ManualConfig):
    """Options of MedMNIST; a config's name is the set and, above 28, the side: `pathmnist_224`.

    Attributes:
        set: name of the set.
        side: of the images in pixels.
        quality: as for other datasets, but PNG by default: images this small suffer from JPEG.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "set": tuple(SETS)}
    VARIANTS: ClassVar = {
        name if side == 28 else f"{name}_{side}": {"set": name, "side": str(side)}
        for name, found in SETS.items()
        for side in found.md5
    }

    set: str = "pathmnist"
    side: int = 28
    quality: int = 0

    @property
    def file(self) -> str:
        """Name of the npz file.

        Raises:
            UserError: the set has no images of that size.
        """
        sides = SETS[self.set].md5
        if self.side not in sides:
            known = ", ".join(map(str, sides))
            raise UserError(f"option side={self.side}: {self.set} has the sides {known}")
        return f"{self.set}.npz" if self.side == 28 else f"{self.set}_{self.side}.npz"


class Medmnist(ManualBuilder):
    """Images or volumes with their class."""

    SPEC: ClassVar[DatasetSpec] = MEDMNIST
    CONFIG = MedmnistConfig
    _settings: MedmnistConfig

    @classmethod
    def downloads(cls, settings: ManualConfig) -> tuple[Download, ...]:
        assert isinstance(settings, MedmnistConfig)
        md5 = SETS[settings.set].md5
        url = f"{_ZENODO}/{settings.file}?download=1"
        return (Download(url=url, path=settings.file, checksum=f"md5:{md5[settings.side]}"),)

    @property
    def _is_volume(self) -> bool:
        return self._settings.set.endswith("3d")

    def media_features(self) -> dict[str, Any]:
        if self._is_volume:
            return volume_features(self._settings.quality)
        return super().media_features()

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        needed = Needed((self._settings.file,), f"images and labels, from {self.SPEC.homepage}")
        return require_layout(folder, self.SPEC, (needed,))

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        del folder
        image = self._images[record.split][record.source]
        return image[:, :, None] if image.ndim == 2 else image

    def read_media(
        self, folder: pathlib.Path, record: Record
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        if not self._is_volume:
            return super().read_media(folder, record)
        volume = self._images[record.split][record.source]
        spacing = (math.nan, math.nan, math.nan)  # not published
        values = volume_values(volume, spacing, self._settings.quality)
        return values, (volume.shape[1], volume.shape[2])

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        (file,) = self.table_files(folder)
        chosen = SETS[self._settings.set]
        self._images = {s: NpzRows(file, f"{short}_images") for s, short in _SHORT.items()}
        records = [record for split in _SHORT for record in self._read_split(file, split)]
        return Corpus(
            records=records,
            table=file,
            label_names=chosen.labels,
            expected=dict(zip(_SHORT, chosen.counts, strict=True)),
            notes=(f"licence of {self._settings.set}: {chosen.licence}",),
            patient_hint="MedMNIST does not publish which images are of one patient; its split is kept",
        )

    def _read_split(self, file: pathlib.Path, split: str) -> Iterator[Record]:
        """Rows of a split.

        Raises:
            UserError: images of another size, or labels that do not go with them.
        """
        images = self._images[split]
        side = self._settings.side
        sides, rest = (3, ()) if self._is_volume else (2, images.shape[3:])
        if images.shape[1:] != (side,) * sides + rest or rest not in ((), (3,)):
            raise UserError(
                f"{file}: {_SHORT[split]}_images are {images.shape}, expected a side of {side}; take the "
                "published file"
            )
        if images.dtype != np.uint8:
            raise UserError(f"{file}: {_SHORT[split]}_images are {images.dtype}, expected uint8")
        labels = NpzRows(file, f"{_SHORT[split]}_labels").all()
        vectors = self._label_vectors(labels, f"{file}: {_SHORT[split]}_labels")
        if len(vectors) != len(images):
            raise UserError(f"{file}: {split} has {len(images)} images and {len(vectors)} labels")
        for row, vector in enumerate(vectors):
            yield Record(f"{split}/{row}", "", split, "", vector, source=row)

    def _label_vectors(self, labels: np.ndarray, where: str) -> np.ndarray:
        """Class numbers [n, 1] or findings [n, K] as int8 [n, K].

        Raises:
            UserError: another shape, or a number that is no class.
        """
        chosen = SETS[self._settings.set]
        count = len(chosen.labels)
        highest = 1 if chosen.several else count - 1
        wide = labels.shape[1:] == ((count,) if chosen.several else (1,))
        if not wide or not np.isin(labels, np.arange(highest + 1)).all():
            raise UserError(
                f"{where} are {labels.shape} up to {labels.max() if labels.size else 0}, expected 0 to "
                f"{highest} for {', '.join(chosen.labels)}; take the published file"
            )
        if chosen.several:
            return labels.astype(np.int8)
        return np.eye(count, dtype=np.int8)[labels[:, 0].astype(int)]
