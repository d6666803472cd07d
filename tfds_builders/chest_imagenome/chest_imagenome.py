"""TFDS builder of Chest ImaGenome on the images of MIMIC-CXR-JPG."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.chest_imagenome import SPEC as CHEST_IMAGENOME
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.chest_imagenome.scene_graphs import (
    Region,
    SceneGraphs,
    finding_labels,
    read_gold,
    region_features,
)
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.manual_tables import read_rows
from tfds_builders.mimic_paths import EXCLUDE_WARNING, parse_path
from tfds_builders.official_layout import Needed, require_layout

_PLACES = ("", "chest-imagenome/")
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_GOLD_IMAGES = 1_000
_GOLD_BOXES = "gold_dataset/gold_bbox_coordinate_annotations_1000images.csv"
_GOLD_ATTRIBUTES = "gold_dataset/gold_object_attribute_with_coordinates.txt"
_RECORDS = "utils/cxr-record-list_view.csv"
_LIST_COLUMNS = ("dicom_id", "path", "ViewPosition")


@dataclasses.dataclass
class ChestImagenomeConfig(ManualConfig):
    """Options of Chest ImaGenome.

    Attributes:
        annotation: "silver": automatic scene graphs in the published split, without the patients of gold;
            "gold": the 1,000 images with corrected boxes, all of them test.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "annotation": ("silver", "gold")}
    VARIANTS: ClassVar = {"silver": {"annotation": "silver"}, "gold": {"annotation": "gold"}}

    annotation: str = "silver"


class ChestImagenome(ManualBuilder):
    """Radiographs with anatomical regions, their attributes and sentences."""

    SPEC: ClassVar[DatasetSpec] = CHEST_IMAGENOME
    CONFIG = ChestImagenomeConfig
    _settings: ChestImagenomeConfig
    _graphs: SceneGraphs

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
        # TFDS stores no list inside a list without TensorFlow: attributes and phrases are one a line.
        region = {"name": text, "bbox": box, "attributes": text, "phrases": text}
        return {"regions": tfds.features.Sequence(region)}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        tables = self._layout(folder)[:-1]
        if self._settings.annotation == "gold":
            return tables
        # The archive of 242,072 scene graphs is too large to be hashed at every start.
        return tables[:-1]

    def _layout(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """Tables (and for silver the scene graphs), then the images."""
        source = f"from {self.SPEC.homepage}"
        if self._settings.annotation == "gold":
            names: list[tuple[tuple[str, ...], str]] = [
                ((_GOLD_BOXES,), "corrected boxes"),
                ((_GOLD_ATTRIBUTES,), "corrected attributes"),
                ((_RECORDS,), "paths of the images"),
            ]
        else:
            names = [((f"silver_dataset/splits/{name}.csv",), "the split") for name in _SPLITS]
            names.append((("silver_dataset/splits/images_to_avoid.csv",), "the patients of gold"))
            graphs = ("silver_dataset/scene_graph.zip", "silver_dataset/scene_graph")
            names.append((graphs, "scene graphs"))
        needed = [
            Needed(
                tuple(f"{place}{name}" for name in options for place in _PLACES),
                f"{what}, {source}",
            )
            for options, what in names
        ]
        needed.append(Needed(("files",), "images of MIMIC-CXR-JPG"))
        return require_layout(folder, self.SPEC, needed)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        if self._settings.annotation == "gold":
            return self._gold(folder)
        *split_files, avoid_file, graphs, _ = self._layout(folder)
        self._graphs = SceneGraphs(graphs.parent)
        avoid = {row["dicom_id"] for _, row in read_rows(avoid_file, ("dicom_id",))}
        records: list[Record] = []
        dropped = {"patient_of_gold": 0, "no_scene_graph": 0}
        for name, file in zip(_SPLITS, split_files, strict=True):
            for line, row in read_rows(file, _LIST_COLUMNS):
                if row["dicom_id"] in avoid:
                    dropped["patient_of_gold"] += 1
                elif row["dicom_id"] not in self._graphs:
                    dropped["no_scene_graph"] += 1
                else:
                    records.append(_record(row, f"{file} line {line}", _SPLITS[name], None))
        if not records:
            raise UserError(
                f"{graphs} holds no scene graph of the images in {split_files[0].parent}; download it again"
            )
        return Corpus(
            records=records,
            table=split_files[0],
            label_names=self.SPEC.label_names,
            dropped=dropped,
        )

    def _gold(self, folder: pathlib.Path) -> Corpus:
        """The gold dataset.

        Raises:
            UserError: an image whose path is not listed.
        """
        boxes, attributes, record_list, _ = self._layout(folder)
        regions = read_gold(boxes, attributes)
        records = [
            _record(row, f"{record_list} line {line}", "test", regions[row["dicom_id"]])
            for line, row in read_rows(record_list, _LIST_COLUMNS)
            if row["dicom_id"] in regions
        ]
        missing = sorted(set(regions) - {record.key for record in records})
        if missing:
            raise UserError(f"{record_list} does not list {missing[0]} of {boxes.name}")
        return Corpus(
            records=records,
            table=boxes,
            label_names=self.SPEC.label_names,
            expected={"test": _GOLD_IMAGES},
            notes=(EXCLUDE_WARNING,),
        )

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        if record.source is not None:
            return {"regions": region_features(record.source, height, width)}
        regions, sex = self._graphs.read(record.key)
        return {
            "regions": region_features(regions, height, width),
            "label": finding_labels(regions),
            "sex": sex,
        }


def _record(row: dict[str, str], place: str, split: str, regions: list[Region] | None) -> Record:
    """Example of a row of a list of images; the regions of silver are read with the image."""
    image = parse_path(row["path"], place)
    return Record(
        key=row["dicom_id"],
        image=image.path,
        split=split,
        subject_id=image.subject_id,
        label=finding_labels(regions or []),
        fields={"study_id": image.study_id, "view_position": row["ViewPosition"]},
        source=regions,
    )
