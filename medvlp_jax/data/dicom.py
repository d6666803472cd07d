"""DICOM files to uint8 pixels, with the window the file asks for.

Only the tags that describe pixels are read: names, dates and numbers of patients never reach memory,
messages or datasets.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pydicom
import pydicom.multival
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medvlp_jax.data.dicom_frames import decompress_frame
from medvlp_jax.data.images import ImageError, scale_to_uint8, to_uint8

# `warnings.catch_warnings` changes the filters of the whole process; two threads inside it at once would
# restore them in the wrong order and silence every later warning.
_QUIET = threading.Lock()

_PIXEL_TAGS: list[Any] = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "PixelPaddingValue",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "AlphaPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
]


def decode_dicom(
    data: bytes, *, max_pixels: int, frame: Literal["first", "middle"] = "middle"
) -> np.ndarray:
    """Decodes one frame as a viewer would show it.

    Order of DICOM PS3.3 C.11: rescale (or modality table), window (or VOI table), inversion of
    MONOCHROME1. Without a window, or with one that leaves the image uniform, robust percentiles
    are used.

    Args:
        data: file content, with or without the file meta header.
        max_pixels: larger frames are refused before they are decoded.
        frame: which frame of a multi-frame file.

    Returns:
        uint8 [H, W, 1] or RGB [H, W, 3].

    Raises:
        ImageError: no pixel data, damaged, or a transfer syntax without a decoder.
    """
    dataset = read_tags(data)
    try:
        return _pixels_to_uint8(dataset, max_pixels, frame)
    except ImageError:
        raise
    except Exception as error:  # pydicom and its plugins raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"DICOM pixel data cannot be decoded: {reason}") from error


def _pixels_to_uint8(
    dataset: pydicom.Dataset, max_pixels: int, frame: Literal["first", "middle"]
) -> np.ndarray:
    """One frame of a data set that holds only tags about pixels: uint8 [H, W, 1 or 3]."""
    height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if height * width > max_pixels:
        raise ImageError(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    index = frames // 2 if frame == "middle" else 0
    if decompress_frame(dataset, index):
        index = 0
    pixels = pixel_array(dataset, index=index)
    if pixels.ndim == 3 and pixels.shape[-1] not in (3, 4):
        pixels = pixels[0]
    kind = str(dataset.get("PhotometricInterpretation", "")).upper()
    if kind == "PALETTE COLOR":
        return _colour_to_uint8(apply_color_lut(pixels, dataset))
    if pixels.ndim == 3:
        return _colour_to_uint8(pixels[:, :, :3])
    if int(dataset.get("BitsStored") or 8) == 1:
        pixels = pixels.astype(bool)
    grey = _windowed(pixels, dataset)
    inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
    return 255 - grey if kind == "MONOCHROME1" or inverse else grey


def read_tags(data: bytes, more: Sequence[Any] = ()) -> pydicom.Dataset:
    """Reads the tags about pixels, and no others.

    Args:
        data: file content, with or without the file meta header.
        more: names of further tags.

    Raises:
        ImageError: damaged, or without pixel data.
    """
    # pydicom logs a traceback per plugin that fails; the reason is in our error.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with _QUIET, warnings.catch_warnings():
            # Files break the standard in many harmless ways; what matters shows when pixels decode.
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(
                io.BytesIO(data), force=True, specific_tags=[*_PIXEL_TAGS, *more]
            )
    except Exception as error:  # damaged files raise many kinds, whose messages may quote any tag
        raise ImageError(f"damaged DICOM: {type(error).__name__} while reading its tags") from error
    if not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(
            "DICOM without pixel data (a structure set, a report or a presentation state)"
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        # No file meta header: pydicom found out the encoding, and such files are never compressed.
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return dataset


def _colour_to_uint8(pixels: np.ndarray) -> np.ndarray:
    """RGB of 8 or 16 bits to 8; the full range of the type is kept, so colours do not shift."""
    if pixels.dtype == np.uint8:
        return pixels[:, :, :3]
    return scale_to_uint8(pixels[:, :, :3], 0.0, float(np.iinfo(pixels.dtype).max))


def _windowed(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Grey pixels [H, W] after rescale and window (or VOI table), uint8 [H, W, 1]."""
    if pixels.dtype == bool:
        return to_uint8(pixels)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.asarray(apply_modality_lut(pixels, dataset))
        if "VOILUTSequence" in dataset:
            shown = _voi_table(values, dataset)
        else:
            shown = _window(values, dataset)
    if shown is None or shown.min() == shown.max():
        return to_uint8(_without_padding(values, pixels, dataset))
    return shown[:, :, None]


def _voi_table(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """PS3.3 C.11.2.1.1: looks the pixels up in the first table of the file, uint8 [H, W].

    The range of the table's entries becomes 0 ... 255: the number of bits that the file gives for them is
    often that of the word they are stored in.
    """
    whole = np.rint(values).astype(np.int64)  # a rescale slope makes floats
    number, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    last = first + (number or 65_536) - 1
    ends = np.asarray(apply_voi(np.arange(first, last + 1, dtype=np.int64), dataset))
    shown = np.asarray(apply_voi(whole, dataset))
    return scale_to_uint8(shown, float(ends.min()), float(ends.max()))


def _without_padding(
    values: np.ndarray, pixels: np.ndarray, dataset: pydicom.Dataset
) -> np.ndarray:
    """NaN where the scanner saw nothing, so that percentiles are those of the image alone."""
    padding = dataset.get("PixelPaddingValue")
    outside = pixels == padding if isinstance(padding, int) else np.zeros(pixels.shape, bool)
    if not outside.any() or outside.all():
        return values
    return np.where(outside, np.nan, values)


def _window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """PS3.3 C.11.2.1.2 and .3 with the first window of the file; None when there is no usable one."""
    centre, width = (_first(dataset.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return scale_to_uint8(1 / (1 + np.exp(-4 * (values - centre) / width)), 0.0, 1.0)
    if function == "LINEAR":
        # The standard counts the pixels of the window: a window of width 256 around 128 is 0 ... 255.
        centre, width = centre - 0.5, max(width - 1, 1e-3)
    return scale_to_uint8(values, centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """First number of a possibly multi-valued element."""
    values = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
    try:
        return float(values[0])
    except (TypeError, ValueError, IndexError):
        return None
