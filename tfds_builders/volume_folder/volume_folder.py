"""TFDS builder of a user's own folder: CT or MR volumes with texts (and labels) in one table."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from medvlp_jax.data.datasets.volume_folder import SPEC as VOLUME_FOLDER
from medvlp_jax.data.images import ImageError
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.data.volumes import looks_like_ct, read_volume, resampled, windowed
from medvlp_jax.errors import UserError
from tfds_builders.image_text_folder.image_text_folder import (
    FolderConfig,
    assign_splits,
    label_vector,
)
from tfds_builders.image_text_folder.image_text_folder import make_config as make_folder_config
from tfds_builders.image_text_folder.table import find_table, label_names, read_table
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record, parse_config
from tfds_builders.stored_volumes import volume_features, volume_values

WINDOWS: dict[str, tuple[float, float]] = {
    "soft_tissue": (40, 400),
    "lung": (-600, 1500),
    "bone": (480, 2500),
    "brain": (40, 80),
}
"""Level and width in Hounsfield units."""

_TABLE_OPTIONS = (
    "table",
    "fractions",
    "fold",
    "min_label_count",
    "max_labels",
    "label_columns",
    "patient_in_two_splits",
)


@dataclasses.dataclass
class VolumeConfig(ManualConfig):
    """Options of a build; those about the table are the ones of `image_text_folder`.

    Attributes:
        size: shorter side of the stored slices in pixels, whose pixels are square; 0 keeps it.
        depth: number of stored slices; 0 keeps it.
        window: grey values: "auto" (CT: soft tissue, else percentiles), "percentiles", a name of `WINDOWS`,
            or "LEVEL,WIDTH" in Hounsfield units.
        table, fractions, fold, min_label_count, max_labels, label_columns, patient_in_two_splits, columns:
            see `FolderConfig`.
    """

    depth: int = 0
    window: str = "auto"
    table: str = ""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    fold: int = 0
    min_label_count: int = 5
    max_labels: int = 64
    label_columns: str = ""
    patient_in_two_splits: str = "refuse"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    def rows_config(self) -> FolderConfig:
        """The options about the table."""
        names = (*_TABLE_OPTIONS, "folder", "columns")
        return FolderConfig(name=self.name, **{name: getattr(self, name) for name in names})


def parse_window(text: str) -> tuple[float, float] | str:
    """Level and width, or "auto" or "percentiles".

    Raises:
        UserError: neither a name nor two numbers.
    """
    if text in ("auto", "percentiles"):
        return text
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        level, width = (float(part) for part in text.split(","))
        if not width > 0:
            raise ValueError
    except ValueError:
        names = ", ".join(("auto", "percentiles", *WINDOWS))
        raise UserError(
            f"option window={text!r}: expected {names}, or LEVEL,WIDTH, e.g. -600,1500"
        ) from None
    return level, width


class VolumeFolder(ManualBuilder):
    """Volumes with texts from a folder and its table, split by patient."""

    SPEC: ClassVar[DatasetSpec] = VOLUME_FOLDER
    CONFIG = VolumeConfig
    _settings: VolumeConfig

    @classmethod
    def make_config(
        cls, folder: str | os.PathLike[str], options: Mapping[str, str]
    ) -> VolumeConfig:
        """Config of a folder, named after it; `FIELD_column=NAME` names a column of the table."""
        mine = dict(options)
        about_table = {
            key: mine.pop(key)
            for key in options
            if key in _TABLE_OPTIONS or (key.endswith("_column") and key != "volume_column")
        }
        if "volume_column" in mine:
            about_table["image_column"] = mine.pop("volume_column")
        rows = make_folder_config(folder, about_table)
        config = parse_config(VolumeConfig, folder, {"name": rows.name, **mine})
        parse_window(config.window)
        for name in (*_TABLE_OPTIONS, "columns"):
            setattr(config, name, getattr(rows, name))
        return config

    def media_features(self) -> dict[str, Any]:
        return volume_features(self._settings.quality)

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return (find_table(folder, self._settings.table),)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        settings = self._settings.rows_config()
        singles = tuple(c.strip() for c in settings.label_columns.split(",") if c.strip())
        table = read_table(self.table_files(folder)[0], settings.columns, singles)
        rows = tuple(row for row in table.rows if row.text or row.labels)
        if not rows:
            raise UserError(f"{table.file}: all {len(table.rows)} rows are without text and label")
        names = label_names(
            rows, table.label_columns, minimum=settings.min_label_count, most=settings.max_labels
        )
        repeated = [name for name, n in Counter(row.image for row in rows).items() if n > 1]
        if repeated:
            raise UserError(f"{table.file} lists {repeated[0]} twice; one row per volume")
        records = [
            Record(
                key=row.image,
                image=row.image,
                split=split,
                subject_id=row.subject_id,
                label=label_vector(row, names),
                fields={
                    name: getattr(row, name)
                    for name in ("text", "findings", "impression", "study_id", "sex", "age")
                },
            )
            for row, split in zip(rows, assign_splits(table, rows, settings), strict=True)
        ]
        return Corpus(
            records=records,
            table=table.file,
            label_names=names,
            dropped={"blank_text_and_label": len(table.rows) - len(rows)},
            patient_hint="add a patient_id column",
        )

    def read_media(
        self, folder: pathlib.Path, record: Record
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        path = (folder / record.image).resolve()
        if not path.is_relative_to(folder):
            raise ImageError("path leads out of the folder; copy the files into it")
        volume = read_volume(path)
        settings = self._settings
        window = parse_window(settings.window)
        if window == "auto" and looks_like_ct(volume):
            window = WINDOWS["soft_tissue"]
        volume = resampled(volume, depth=settings.depth, size=settings.size)
        grey = windowed(volume, None if isinstance(window, str) else window)
        values = volume_values(grey, volume.spacing, settings.quality)
        return values, (grey.shape[1], grey.shape[2])
