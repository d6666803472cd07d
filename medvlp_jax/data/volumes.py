"""CT and MR volumes: NIfTI files and DICOM series to voxels in one orientation, with their spacing.

Whatever the scanner's orientation was, a volume comes out as an axial DICOM series lies in a viewer: D from
foot to head, H from front to back, W from the patient's right to left. It is the canonical orientation (RAS)
of NIfTI with H and W turned over, because images start at the top left. Axes are swapped and flipped, never
resampled, so an oblique volume stays oblique.

Of DICOM only the tags about pixels and geometry are read, of NIfTI only voxels and affine: no identifier
reaches messages or datasets. The numbers of series are compared and forgotten.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data.images import ImageError, is_dicom, scale_to_uint8

MAX_VOXELS = 500_000_000
"""Largest volume: 2 GB in memory."""

_TO_LPS = np.asarray([-1.0, -1.0, 1.0])
_AXES = np.asarray([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # head, back, left in LPS
_NIFTI = (".nii", ".nii.gz")


@dataclasses.dataclass(frozen=True)
class Volume:
    """Voxels with their size.

    Attributes:
        voxels: float32 [D, H, W], rescaled by the file (CT: Hounsfield units).
        spacing: of D, H and W in millimetres; NaN where unknown.
        modality: of DICOM ("CT", "MR" ...); "" where unknown.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    modality: str = ""


def read_volume(path: pathlib.Path) -> Volume:
    """Reads a NIfTI file, a multi-frame DICOM file, or a folder with the files of one DICOM series.

    Raises:
        ImageError: with the reason: damaged, mixed or incomplete series, no known format.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.name.lower().endswith(_NIFTI):
        return read_nifti(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    if is_dicom(data):
        return _read_dicom([(path.name, data)])
    raise ImageError(
        f"not a volume: expected .nii, .nii.gz, DICOM or a folder of DICOM files (starts with {data[:4]!r})"
    )


def _read_folder(folder: pathlib.Path) -> Volume:
    """DICOM series in a folder, at any depth; files of other formats are passed over."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name.upper() != "DICOMDIR")
    return _read_dicom([(f.name, data) for f in files if is_dicom(data := f.read_bytes())])


def _read_dicom(files: Sequence[tuple[str, bytes]]) -> Volume:
    """One series."""
    from medvlp_jax.data.dicom_series import read_series  # loads pydicom only when there is a DICOM

    return read_series(files)


def read_nifti(path: pathlib.Path, *, time: int = 0) -> Volume:
    """Reads a NIfTI-1 or NIfTI-2 file.

    Args:
        path: .nii or .nii.gz.
        time: which volume of a file that holds several (fMRI, diffusion, sequences side by side).

    Raises:
        ImageError: nibabel is not installed, damaged, in colour, too large, or without volume `time`.
    """
    try:
        import nibabel  # loaded only where there is a NIfTI file
        from nibabel.filebasedimages import ImageFileError
    except ModuleNotFoundError as error:
        raise ImageError("NIfTI files need nibabel: pip install nibabel") from error
    try:
        image: Any = nibabel.load(path)
        shape = image.shape + (1,) * (3 - len(image.shape))
        require_size(shape[:3])
        if image.get_data_dtype().names:
            raise ImageError("NIfTI in colour: expected one value per voxel")
        if time >= int(np.prod(shape[3:], initial=1)):
            raise ImageError(
                f"NIfTI with {int(np.prod(shape[3:], initial=1))} volumes has no {time}"
            )
        place = np.unravel_index(time, shape[3:]) if len(shape) > 3 else ()
        voxels = np.asarray(image.dataobj[(..., *place)] if place else image.dataobj, np.float32)
        affine = np.asarray(image.affine, np.float64)
    except ImageError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"damaged NIfTI: {' '.join(str(error).split())[:200]}") from error
    except ImageFileError as error:
        raise ImageError("damaged NIfTI: not a file of this format") from error
    return oriented(voxels.reshape(shape[:3]), (affine[:3, :3] * _TO_LPS[:, None]).T)


def oriented(voxels: np.ndarray, directions: np.ndarray, modality: str = "") -> Volume:
    """Swaps and flips axes so that D leads to the head, H to the back and W to the left of the patient.

    Args:
        voxels: float [a, b, c].
        directions: [3, 3], one row per axis: the way in millimetres from a voxel to the next along it, in
            DICOM's coordinates (to the left, to the back, to the head).
        modality: kept.

    Raises:
        ImageError: the directions do not span space.
    """
    lengths = np.linalg.norm(directions, axis=1)
    if not np.isfinite(directions).all() or abs(np.linalg.det(directions)) <= 1e-6 * lengths.prod():
        raise ImageError("geometry is damaged: its axes do not span space")
    cosines = (directions / lengths[:, None]) @ _AXES.T  # [axis of the file, axis of the result]
    order = max(
        itertools.permutations(range(3)),
        key=lambda p: sum(abs(cosines[source, target]) for target, source in enumerate(p)),
    )
    turned = voxels.transpose(order)
    flips = tuple(target for target, source in enumerate(order) if cosines[source, target] < 0)
    turned = np.flip(turned, flips) if flips else turned
    d, h, w = (float(lengths[source]) for source in order)
    return Volume(np.ascontiguousarray(turned, np.float32), (d, h, w), modality)


def require_size(shape: Sequence[int]) -> None:
    """Stops before too much memory is used.

    Raises:
        ImageError: an empty or too large volume.
    """
    voxels = int(np.prod([int(side) for side in shape]))
    if not 0 < voxels <= MAX_VOXELS:
        sides = " x ".join(map(str, shape))
        raise ImageError(f"{sides} voxels: expected 1 to {MAX_VOXELS}")


def resampled(volume: Volume, *, depth: int = 0, size: int = 0) -> Volume:
    """Another number of slices, and square pixels.

    Slices are averaged where there are more than `depth`, and interpolated where there are fewer. Pixels
    become as wide as high, by enlarging their longer side, and then the shorter side of the slice is shrunk
    to `size`.

    Args:
        volume: the volume.
        depth: number of slices; 0 keeps it.
        size: pixels; 0 keeps the side.

    Returns:
        The volume with its new spacing.
    """
    voxels, (d, h, w) = volume.voxels, volume.spacing
    count, height, width = voxels.shape
    if depth and depth != count:
        weights = slice_weights(count, depth)
        flat = weights @ voxels.reshape(count, -1)
        voxels = flat.reshape(depth, height, width)
        d *= count / depth
    known = np.isfinite([h, w]).all() and min(h, w) > 0
    side = min(h, w) if known else 1.0
    tall, wide = (height * h / side, width * w / side) if known else (height, width)
    scale = min(1.0, size / min(tall, wide)) if size else 1.0
    target = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    if target != (width, height):
        shrinks = target[0] <= width and target[1] <= height
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        voxels = np.stack([cv2.resize(s, target, interpolation=how) for s in voxels])
        h, w = h * height / target[1], w * width / target[0]
    return Volume(np.ascontiguousarray(voxels, np.float32), (d, h, w), volume.modality)


def slice_weights(stored: int, wanted: int) -> np.ndarray:
    """Weights [wanted, stored] by which slices are mixed; every row adds up to 1.

    Fewer slices than stored: each is the mean over its share of the depth. More: linear interpolation between
    the centres of the stored slices.
    """
    if wanted <= stored:
        edges = np.arange(wanted + 1) * (stored / wanted)
        low = np.maximum(edges[:-1, None], np.arange(stored)[None])
        high = np.minimum(edges[1:, None], np.arange(1, stored + 1)[None])
        weights = np.clip(high - low, 0.0, None)
    else:
        centres = np.clip((np.arange(wanted) + 0.5) * (stored / wanted) - 0.5, 0, stored - 1)
        weights = np.clip(1.0 - abs(centres[:, None] - np.arange(stored)[None]), 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def windowed(
    volume: Volume,
    window: tuple[float, float] | None,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> np.ndarray:
    """Grey values of a volume, uint8 [D, H, W].

    Args:
        volume: the volume.
        window: level and width, e.g. (40, 400) Hounsfield units for soft tissue; None = percentiles over the
            whole volume, because the units of MR mean nothing.
        percentiles: that become black and white.
    """
    if window is not None:
        level, width = window
        return scale_to_uint8(volume.voxels, level - width / 2, level + width / 2)
    finite = volume.voxels[np.isfinite(volume.voxels)]
    if not finite.size:
        return np.zeros(volume.voxels.shape, np.uint8)
    # A sample of the voxels is enough for percentiles and much faster.
    low, high = np.percentile(finite[:: max(1, finite.size // 1_000_000)], percentiles)
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return scale_to_uint8(volume.voxels, float(low), float(high))


def looks_like_ct(volume: Volume) -> bool:
    """Whether the values are Hounsfield units: DICOM says so, else air and bone are where they should be."""
    if volume.modality:
        return volume.modality == "CT"
    sample = volume.voxels.ravel()[:: max(1, volume.voxels.size // 1_000_000)]
    low, high = np.nanpercentile(sample, (0.5, 99.5))
    return bool(low < -500 and high < 3_500)
