"""TFDS builder of MELINDA from the published tables and figures."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.melinda import SPEC as MELINDA
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import UNKNOWN, Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.numbered_names import NumberedNames
from tfds_builders.official_layout import Needed, require_layout
from tfds_builders.split_leaks import leak_notes

_TABLES = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
# Published number of classes of each column.
_CLASSES = {"p_meth_label": 7, "p_meth": 45, "i_meth_label": 15, "i_meth": 85}


@dataclasses.dataclass
class MelindaConfig(ManualConfig):
    """Options of MELINDA.

    Attributes:
        method: the column whose classes are the labels: how participants ("p_meth") or interactions
            ("i_meth") were detected, coarse ("..._label") or fine.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "method": tuple(_CLASSES)}
    VARIANTS: ClassVar = {name: {"method": name} for name in _CLASSES}

    method: str = "p_meth_label"


class Melinda(ManualBuilder):
    """Figures with caption and method; one class of the chosen column is 1, all others are 0."""

    SPEC: ClassVar[DatasetSpec] = MELINDA
    CONFIG = MelindaConfig
    _settings: MelindaConfig

    def extra_features(self) -> dict[str, Any]:
        return dict.fromkeys(_CLASSES, tfds.features.Text())

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        return self._layout(folder)[:-1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The three tables, the folder of figures."""
        source = f"see {self.SPEC.homepage}"
        needed = [Needed((name,), f"captions and classes, {source}") for name in _TABLES.values()]
        needed.append(Needed(("melinda_images", "images"), f"figures, {source}"))
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        *tables, images = self._layout(folder)
        place, method = images.relative_to(folder), self._settings.method
        records = []
        key_of = NumberedNames()
        for split, table in zip(_TABLES, tables, strict=True):
            for line, row in read_rows(table, ("figure_file", "caption", *_CLASSES)):
                name = row["figure_file"]
                if not name:
                    raise UserError(f"{table} line {line}: figure_file is blank; download it again")
                fields = {"text": row["caption"], **{column: row[column] for column in _CLASSES}}
                records.append(
                    Record(
                        key=key_of(name),
                        image=(place / name).as_posix(),
                        split=split,
                        subject_id=name,
                        label=np.zeros(0, np.int8),
                        fields={**fields, "study_id": name},
                    )
                )
        found = {record.fields[method] for record in records} - {""}
        if not found:
            raise UserError(f"{tables[0]} and its sisters name no class of {method}")
        names = tuple(sorted(found, key=lambda name: name.zfill(9) if name.isdigit() else name))
        return Corpus(
            records=[
                dataclasses.replace(r, label=_label(r.fields[method], names)) for r in records
            ],
            table=tables[0],
            label_names=names,
            expected=self.SPEC.expected_counts,
            notes=(
                f"classes of {method}: {len(names)} (published: {_CLASSES[method]})",
                *leak_notes(records, "figures are listed"),
            ),
            # A figure is listed once for each of its parts.
            shared_subjects=True,
        )


def _label(found: str, names: tuple[str, ...]) -> np.ndarray:
    """int8 [K]: 1 for the class, 0 for the others; all unknown where the table has none."""
    if not found:
        return np.full(len(names), UNKNOWN, np.int8)
    return np.asarray([name == found for name in names], np.int8)
