"""Regions of one image: from a scene graph of the silver dataset, or from the tables of the gold one."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data.datasets.chest_imagenome import SPEC as CHEST_IMAGENOME
from medvlp_jax.data.images import ImageError
from medvlp_jax.errors import UserError
from tfds_builders.json_files import box_of, listed, parse_json
from tfds_builders.manual_builder import UNKNOWN
from tfds_builders.manual_tables import number, read_rows
from tfds_builders.zipped_images import ZippedImages

_EDGES = ("original_x1", "original_y1", "original_x2", "original_y2")


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """An anatomical region of an image.

    Attributes:
        name: e.g. "left lower lung zone".
        edges: x1, y1, x2, y2 in pixels of the original image; None = no box.
        attributes: `CATEGORY|yes or no|NAME`, each once.
        phrases: sentences of the report.
    """

    name: str
    edges: tuple[float, float, float, float] | None
    attributes: tuple[str, ...]
    phrases: tuple[str, ...]


class SceneGraphs:
    """The scene graphs of the silver dataset, in their archive or unpacked; readable from several threads."""

    def __init__(self, silver: pathlib.Path):
        """Args: folder silver_dataset.

        Raises:
            UserError: damaged archive.
        """
        archive = silver / "scene_graph.zip"
        self._zipped = ZippedImages([archive] if archive.is_file() else [])
        self._folders = (silver / "scene_graph", silver / "scene_graph" / "scene_graph")

    def __contains__(self, dicom_id: str) -> bool:
        return _file_name(dicom_id) in self._zipped or self._unpacked(dicom_id) is not None

    def _unpacked(self, dicom_id: str) -> pathlib.Path | None:
        paths = (folder / _file_name(dicom_id) for folder in self._folders)
        return next((path for path in paths if path.is_file()), None)

    def read(self, dicom_id: str) -> tuple[list[Region], str]:
        """Regions of an image, those without a box last, and the patient's sex.

        Raises:
            ImageError: damaged, or not there.
        """
        path = self._unpacked(dicom_id)
        try:
            data = path.read_bytes() if path else self._zipped.read_bytes(_file_name(dicom_id))
            return _parse(parse_json(data, _file_name(dicom_id)), _file_name(dicom_id))
        except (UserError, OSError) as error:
            raise ImageError(f"scene graph cannot be read: {error}") from error


def _file_name(dicom_id: str) -> str:
    return f"{dicom_id}_SceneGraph.json"


def _parse(graph: Any, source: str) -> tuple[list[Region], str]:
    """Joins the objects (boxes) and attributes of a scene graph by the name of the region.

    Raises:
        UserError: not a scene graph.
    """
    boxes = {
        str(entry["bbox_name"]): box_of([entry[edge] for edge in _EDGES], source)
        for entry in listed(graph, "objects", ("bbox_name", *_EDGES), source)
        if all(entry[edge] is not None for edge in _EDGES)
    }
    said: dict[str, Mapping[str, Any]] = {
        str(entry["bbox_name"]): entry
        for entry in listed(graph, "attributes", ("bbox_name", "attributes", "phrases"), source)
    }
    regions = []
    for name in dict.fromkeys((*boxes, *said)):
        entry = said.get(name, {})
        found = (str(a) for group in entry.get("attributes", ()) for a in group)
        phrases = (" ".join(str(phrase).split()) for phrase in entry.get("phrases", ()))
        regions.append(Region(name, boxes.get(name), _once(found), _once(phrases)))
    return regions, str(graph.get("gender") or "")


def read_gold(boxes: pathlib.Path, attributes: pathlib.Path) -> dict[str, list[Region]]:
    """Image -> regions of the gold dataset.

    Args:
        boxes: gold_bbox_coordinate_annotations_1000images.csv.
        attributes: gold_object_attribute_with_coordinates.txt, tab-separated.

    Raises:
        UserError: not the published tables.
    """
    said: dict[tuple[str, str], list[str]] = {}
    columns = ("image_id", "bbox", "relation", "label_name", "categoryID", "context")
    for line, row in read_rows(attributes, columns, delimiter="\t"):
        if number(row["relation"], file=attributes, line=line, column="relation") == 1:
            key = (row["image_id"].removesuffix(".dcm"), row["bbox"])
            text = f"{row['categoryID']}|{row['context']}|{row['label_name']}"
            said.setdefault(key, []).append(text)
    found: dict[str, dict[str, Region]] = {}
    for line, row in read_rows(boxes, ("image_id", "bbox_name", *_EDGES)):
        image, name = row["image_id"].removesuffix(".dcm"), row["bbox_name"]
        regions = found.setdefault(image, {})
        edges = None
        if all(row[e] for e in _EDGES):  # a blank edge means no box
            x1, y1, x2, y2 = (number(row[e], file=boxes, line=line, column=e) for e in _EDGES)
            edges = (x1, y1, x2, y2)
        regions[name] = Region(name, edges, _once(said.get((image, name), ())), ())
    return {image: list(regions.values()) for image, regions in found.items()}


def finding_labels(regions: Sequence[Region]) -> np.ndarray:
    """int8 [9]: 1 where a region has the finding, 0 where it is only denied, -2 where nothing is said."""
    names = CHEST_IMAGENOME.label_names
    label = np.full(len(names), UNKNOWN, np.int8)
    for region in regions:
        for attribute in region.attributes:
            _, context, name = (*attribute.split("|", 2), "", "")[:3]
            if name in names and context in ("yes", "no"):
                k = names.index(name)
                label[k] = max(label[k], int(context == "yes"))
    return label


def region_features(regions: Sequence[Region], height: int, width: int) -> list[dict[str, Any]]:
    """Stored form of the regions that have a box with an area inside the image.

    Args:
        regions: of one image.
        height: of the original image in pixels.
        width: likewise.
    """
    stored = []
    for region in regions:
        if region.edges is None:
            continue
        x1, y1, x2, y2 = region.edges
        scaled = np.asarray([y1 / height, x1 / width, y2 / height, x2 / width], np.float32)
        box = scaled.clip(0.0, 1.0)
        # The automatic boxes of some regions are empty; such an image is still a good one.
        if box[2] > box[0] and box[3] > box[1]:
            stored.append(
                {
                    "name": region.name,
                    "bbox": box,
                    "attributes": "\n".join(region.attributes),
                    "phrases": "\n".join(region.phrases),
                }
            )
    return stored


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))
