"""TFDS builder of a user's own folder: images with texts (and labels) in one table; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.contrast import EQUALISE, Equalise
from medvlp_jax.data.images import ImageError
from medvlp_jax.data.split_lists import split_hash, write_split_lists
from medvlp_jax.errors import UserError
from tfds_builders.image_text_folder.table import Row, Table, find_table, label_names, read_table
from tfds_builders.patient_splits import SPLITS, hash_splits
from tfds_builders.stored_images import RejectedFiles, load_ahead, read_image, stored_bytes


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """Options of one build; `data build --option KEY=VALUE` sets them.

    Attributes:
        folder: absolute path of the user's folder.
        table: name of the table in it; "" looks for one.
        size: shorter side of the stored images in pixels; 0 keeps the original size.
        quality: JPEG quality of the stored images; 0 stores PNG.
        equalise: contrast of the stored images: "none", "histogram" (as MIMIC-CXR-JPG) or "clahe".
        fractions: shares of the patients in train, validation and test, where the table has no split.
        fold: number of a fold of a cross-validation by patient: with a test share of 0.2, the folds 0 to 4
            test every patient once. 0 is the usual split.
        max_rejected: share of undecodable images over which the build stops.
        min_label_count: rows a label must have to become a class.
        max_labels: most classes.
        label_columns: columns that hold one label each, separated by commas; "" looks for them.
        patient_in_two_splits: "refuse", or "first" puts all rows of the patient in the split of the first.
        workers: threads that decode images; 0 = one per core.
        columns: field -> column name, where names are not detected.
    """

    folder: str = ""
    table: str = ""
    size: int = 256
    quality: int = 95
    equalise: Equalise = "none"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    fold: int = 0
    max_rejected: float = 0.01
    min_label_count: int = 5
    max_labels: int = 64
    label_columns: str = ""
    workers: int = 0
    patient_in_two_splits: str = "refuse"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)


def make_config(folder: str | os.PathLike[str], options: dict[str, str]) -> FolderConfig:
    """Config of a folder, named after it.

    Args:
        folder: the user's folder.
        options: texts from the command line; `FIELD_column=NAME` names a column, `name=NAME` the config
            (default: the folder's name).

    Raises:
        UserError: unknown option or a value that does not parse.
    """
    path = pathlib.Path(folder).expanduser().resolve()
    options = dict(options)
    name = re.sub(r"[^A-Za-z0-9_]+", "_", options.pop("name", path.name)).strip("_") or "folder"
    config = FolderConfig(
        name=name, folder=str(path), description=f"Images and texts of {path.name}"
    )
    known = {f.name for f in dataclasses.fields(FolderConfig)} - tfds_fields()
    for key, text in options.items():
        if key.endswith("_column"):
            config.columns[key.removesuffix("_column")] = text
            continue
        if key not in known:
            raise UserError(
                f"option {key!r} is unknown; there are {', '.join(sorted(known))}, FIELD_column, name"
            )
        setattr(config, key, _parse(key, text, getattr(config, key)))
    if not 0 <= config.fold * config.fractions[2] < 1:
        raise UserError(
            f"option fold={config.fold}: with a test share of {config.fractions[2]:g} there are the folds 0 "
            f"to {math.ceil(1 / max(config.fractions[2], 1e-9) - 1e-9) - 1}"
        )
    if config.equalise not in EQUALISE:
        raise UserError(
            f"option equalise={config.equalise!r}: expected {', '.join(EQUALISE[:-1])} or {EQUALISE[-1]}"
        )
    if config.patient_in_two_splits not in ("refuse", "first"):
        raise UserError(
            f"option patient_in_two_splits={config.patient_in_two_splits!r}: expected refuse or first"
        )
    return config


def tfds_fields() -> set[str]:
    """Fields of a config that are not for the command line."""
    return {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)} | {"folder", "columns"}


def _parse(key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, tuple):
            values = tuple(float(part) for part in text.split(","))
            if len(values) != len(default) or abs(sum(values) - 1) > 1e-6 or min(values) < 0:
                raise ValueError
            return values
        return type(default)(text)
    except ValueError:
        raise UserError(
            f"option {key}={text!r}: expected a value like {default!r}"
            + (" whose parts add up to 1" if isinstance(default, tuple) else "")
        ) from None


class ImageTextFolder(tfds.core.GeneratorBasedBuilder):
    """Images with texts from a folder and its table, split by patient."""

    code_path = None  # no checksums of downloads to look for
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    make_config = staticmethod(make_config)

    def __init__(self, *, config: FolderConfig, data_dir: str | os.PathLike[str], **kwargs: Any):
        """Args: config from `make_config`, data directory, and what TFDS takes besides."""
        self._settings = config
        super().__init__(config=config, data_dir=data_dir, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        # Grey images are stored with one channel; decoders give three.
                        shape=(None, None, 3),
                        encoding_format="jpeg" if self._settings.quality else "png",
                    ),
                    "text": text,
                    "findings": text,
                    "impression": text,
                    "label": tfds.features.Tensor(shape=(None,), dtype=np.int8),
                    "subject_id": text,
                    "study_id": text,
                    "image_id": text,
                    "view_position": text,
                    "sex": text,
                    "age": np.float32,
                }
            ),
            metadata=tfds.core.MetadataDict({}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        settings = self._settings
        folder = pathlib.Path(settings.folder)
        table = _read(settings)
        rows = tuple(row for row in table.rows if row.text)
        if not rows:
            raise UserError(f"{table.file}: all {len(table.rows)} rows have a blank text")
        names = label_names(
            rows,
            table.label_columns,
            minimum=settings.min_label_count,
            most=settings.max_labels,
        )
        assigned = assign_splits(table, rows, settings)
        self._rejected = RejectedFiles(
            pathlib.Path(self.data_path), allowed=int(settings.max_rejected * len(rows))
        )
        patients = {
            split: len({_patient(r) for r, s in zip(rows, assigned, strict=True) if s == split})
            for split in SPLITS
        }
        ids = [(s, row.image) for row, s in zip(rows, assigned, strict=True)]
        write_split_lists(pathlib.Path(self.data_path), ids, version="1")
        metadata = {
            "label_names": list(names),
            "rows": len(table.rows),
            "dropped": {"blank_text": len(table.rows) - len(rows), "rejected": 0},
            "patients": patients,
            "rows_without_patient": sum(not row.subject_id for row in rows),
            "split_hash": split_hash(ids),
            "columns": table.columns,
            "table_hash": _table_hash(settings),
            "options": _recorded_options(settings),
        }
        assert self.info.metadata is not None
        self.info.metadata.update(metadata)
        present = [split for split in SPLITS if split in assigned]
        return {
            split: self._generate_examples(
                folder, [r for r, s in zip(rows, assigned, strict=True) if s == split], names
            )
            for split in present
        }

    def _generate_examples(
        self, folder: pathlib.Path, rows: list[Row], names: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        settings = self._settings

        def load(row: Row) -> bytes:
            image = read_image(folder, row.image)
            return stored_bytes(
                image, size=settings.size, quality=settings.quality, contrast=settings.equalise
            )

        for row, image in load_ahead(rows, load, settings.workers):
            try:
                stored = image.result()
            except ImageError as error:
                self._rejected.add(row.number, row.image, str(error))
                assert self.info.metadata is not None
                self.info.metadata["dropped"]["rejected"] += 1
                continue
            yield (
                f"{row.number:09d}",
                {
                    "image": io.BytesIO(stored),
                    "text": row.text,
                    "findings": row.findings,
                    "impression": row.impression,
                    "label": label_vector(row, names),
                    "subject_id": _patient(row),
                    "study_id": row.study_id,
                    "image_id": row.image,
                    "view_position": row.view_position,
                    "sex": row.sex,
                    "age": row.age,
                },
            )

    def difference_to_built(self) -> str | None:
        """What differs between this build and the one that is already on the disk; None = nothing.

        Two folders of one name, an edited table or another option must not silently give the old data.
        """
        built = self.info.metadata or {}
        if built.get("table_hash") != _table_hash(self._settings):
            return "its table has changed, or it was built from another folder of this name"
        now = json.loads(json.dumps(_recorded_options(self._settings)))
        old = built.get("options", {})
        changed = [
            f"{k} (was {old.get(k)!r}, now {v!r})" for k, v in now.items() if old.get(k) != v
        ]
        return f"options differ: {', '.join(changed)}" if changed else None


def _read(settings: FolderConfig) -> Table:
    singles = tuple(c.strip() for c in settings.label_columns.split(",") if c.strip())
    file = find_table(pathlib.Path(settings.folder), settings.table)
    return read_table(file, settings.columns, singles)


def _table_hash(settings: FolderConfig) -> str:
    """SHA-256 of the table file."""
    file = find_table(pathlib.Path(settings.folder), settings.table)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _recorded_options(settings: FolderConfig) -> dict[str, Any]:
    """The options that change what is stored."""
    left_out = (tfds_fields() | {"workers", "max_rejected"}) - {"columns"}
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in left_out}


def _patient(row: Row) -> str:
    """Patient of a row; without one, each image counts as a patient of its own."""
    return row.subject_id or f"image:{row.image}"


def label_vector(row: Row, names: tuple[str, ...]) -> np.ndarray:
    """int8 [K]: 1 present, 0 absent, -1 uncertain, -2 unknown."""
    if row.labels is None:
        return np.full(len(names), -2, np.int8)
    return np.asarray([row.labels.get(name, row.unnamed) for name in names], np.int8)


def assign_splits(table: Table, rows: tuple[Row, ...], settings: FolderConfig) -> list[str]:
    """Split of each row: the table's own, else by a hash of the patient.

    Raises:
        UserError: the table puts one patient in two splits, or gives a split to some rows only.
    """
    given = [row.split for row in rows]
    if not any(given):
        patients = {_patient(row) for row in rows}
        by_hash = hash_splits(patients, settings.fractions, settings.fold)
        return [by_hash[_patient(row)] for row in rows]
    missing = [row.number for row in rows if not row.split]
    if missing:
        raise UserError(
            f"{table.file} line {missing[0]}: no split, but other rows have one ({len(missing)} rows lack "
            "it); fill the column or remove it"
        )
    first: dict[str, tuple[str, int]] = {}
    for row in rows:
        split, number = first.setdefault(_patient(row), (row.split, row.number))
        if split != row.split and settings.patient_in_two_splits != "first":
            raise UserError(
                f"{table.file} lines {number} and {row.number}: one patient is in {split} and in "
                f"{row.split}, which leaks between training and test. Correct the table, or --option "
                "patient_in_two_splits=first moves all rows of such a patient to the split of the first"
            )
    return [first[_patient(row)][0] for row in rows]
