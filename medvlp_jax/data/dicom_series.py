"""A DICOM series, or one multi-frame file, to a volume: slices in order, none missing, none twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from medvlp_jax.data.dicom import read_tags
from medvlp_jax.data.dicom_frames import decompress_frame
from medvlp_jax.data.images import ImageError
from medvlp_jax.data.volumes import Volume, oriented, require_size

_GEOMETRY = (
    "Modality",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_SAME_DIRECTION = 1e-3
_SAME_PLACE = 0.05  # of the usual distance
_GAP = 1.5  # of the usual distance


@dataclasses.dataclass(frozen=True)
class _Slice:
    """One slice.

    Attributes:
        name: of its file, for messages.
        pixels: float32 [H, W], rescaled.
        position: of its first pixel in millimetres.
        orientation: [2, 3]: where a row and where a column leads to.
        pixel: distance of rows and of columns in millimetres.
        thickness: spacing between slices as the file says it; NaN where it does not.
    """

    name: str
    pixels: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    pixel: tuple[float, float]
    thickness: float


def read_series(files: Sequence[tuple[str, bytes]]) -> Volume:
    """Reads the files of one series, in any order.

    Slices are sorted by their position along their normal, which the names and numbers of files need not
    follow, and rescaled one by one (PET changes the slope from slice to slice).

    Args:
        files: name, for messages, and content of each file.

    Raises:
        ImageError: no file, several series, slices of different size or direction, two at one place, a
            gap, no position, colour, or damaged.
    """
    if not files:
        raise ImageError("holds no DICOM file")
    read = [(name, data, read_tags(data, _GEOMETRY)) for name, data in files]
    series = {str(dataset.get("SeriesInstanceUID", "")) for _, _, dataset in read}
    if len(series) > 1:
        raise ImageError(f"holds {len(series)} mixed DICOM series: give each a folder of its own")
    first = read[0][2]
    frames = sum(max(1, int(d.get("NumberOfFrames") or 1)) for _, _, d in read)
    require_size((frames, int(first.get("Rows") or 0), int(first.get("Columns") or 0)))
    slices = [one for name, data, dataset in read for one in _slices(name, data, dataset)]
    modality = str(first.get("Modality") or "").upper()
    return _stack(slices, modality)


def _slices(name: str, data: bytes, dataset: pydicom.Dataset) -> Iterator[_Slice]:
    """The slices of one file."""
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError(f"{name} is in colour: expected one value per voxel")
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    for index in range(frames):
        place = _groups(dataset, index)
        pixels = _frame(name, data, dataset, index, frames)
        try:
            orientation = np.asarray(place("ImageOrientationPatient"), float).reshape(2, 3)
            position = np.asarray(place("ImagePositionPatient"), float).reshape(3)
            down, right = (float(v) for v in place("PixelSpacing"))
        except (TypeError, ValueError):
            raise ImageError(
                f"{name} has no position, orientation or pixel spacing: not a slice of a volume"
            ) from None
        slope, intercept = (place(key) for key in ("RescaleSlope", "RescaleIntercept"))
        values = _without_padding(pixels, dataset)
        values = values * float(1 if slope is None else slope) + float(intercept or 0)
        thickness = place("SpacingBetweenSlices") or place("SliceThickness") or np.nan
        yield _Slice(
            name, values.astype(np.float32), position, orientation, (down, right), float(thickness)
        )


def _groups(dataset: pydicom.Dataset, index: int) -> Any:
    """Function that finds a tag of a frame: in its own group, in the shared one, or in the file."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    groups = [*(own[index : index + 1]), *shared[:1]]

    def find(key: str) -> Any:
        for group in groups:
            for element in group:
                for item in element.value if element.VR == "SQ" else ():
                    if item.get(key) is not None:
                        return item.get(key)
        return dataset.get(key)

    return find


def _frame(name: str, data: bytes, dataset: pydicom.Dataset, index: int, frames: int) -> np.ndarray:
    """Stored pixels of a frame [H, W]."""
    try:
        if frames > 1 and dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset = read_tags(data)  # `decompress_frame` leaves one frame in it
        pixels = pixel_array(dataset, index=0 if decompress_frame(dataset, index) else index)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # pydicom and its plugins raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"{name}: pixel data cannot be decoded: {reason}") from error
    return pixels.reshape(pixels.shape[-2:])


def _without_padding(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """float32 [H, W]; where the scanner saw nothing, the smallest value that it did see."""
    padding = dataset.get("PixelPaddingValue")
    outside = pixels == padding if isinstance(padding, int) else np.zeros(pixels.shape, bool)
    values = pixels.astype(np.float32)
    if outside.any() and not outside.all():
        values[outside] = values[~outside].min()
    return values


def _stack(slices: list[_Slice], modality: str) -> Volume:
    """Slices in the order of their position, as a volume."""
    first = slices[0]
    for one in slices:
        if one.pixels.shape != first.pixels.shape or not np.allclose(one.pixel, first.pixel):
            raise ImageError(f"{one.name} and {first.name} have slices of different size")
        if abs(one.orientation - first.orientation).max() > _SAME_DIRECTION:
            raise ImageError(
                f"{one.name} and {first.name} have different directions, as scouts and reconstructions "
                "do: give each direction a folder of its own"
            )
    right, down = first.orientation
    normal = np.cross(right, down)
    places = np.asarray([one.position @ normal for one in slices])
    order = np.argsort(places, kind="stable")
    distance = _distance([slices[k] for k in order], places[order])
    voxels = np.stack([slices[k].pixels for k in order])
    known = distance if np.isfinite(distance) else 1.0
    directions = np.stack([normal * known, down * first.pixel[0], right * first.pixel[1]])
    volume = oriented(voxels, directions, modality)
    if known == distance:
        return volume
    # The axis of the slices, whose spacing nobody knows, is the one that leads along the normal.
    along = int(np.argmax(abs(np.asarray([normal[2], normal[1], normal[0]]))))
    d, h, w = (np.nan if k == along else v for k, v in enumerate(volume.spacing))
    return dataclasses.replace(volume, spacing=(d, h, w))


def _distance(slices: list[_Slice], places: np.ndarray) -> float:
    """Distance of neighbouring slices in millimetres; NaN for one slice of unknown thickness.

    Raises:
        ImageError: two slices at one place, or a gap.
    """
    if len(slices) == 1:
        return slices[0].thickness
    steps = np.diff(places)
    usual = float(np.median(steps))
    twice = np.flatnonzero(steps <= max(_SAME_PLACE * usual, 1e-4))
    if twice.size:
        a, b = slices[twice[0]].name, slices[twice[0] + 1].name
        raise ImageError(
            f"{twice.size} slices lie where another does, the first are {a} and {b}: several scans in one "
            "folder, or a file that was copied"
        )
    gaps = np.flatnonzero(steps > _GAP * usual)
    if gaps.size:
        a, b = slices[gaps[0]].name, slices[gaps[0] + 1].name
        raise ImageError(
            f"slices are missing: {steps[gaps[0]]:.2f} mm between {a} and {b}, elsewhere {usual:.2f} mm"
        )
    return float(steps.mean())
