"""DICOM files to uint8 pixels, with the window the file asks for.

Only the tags that describe pixels are read: names, dates and numbers of patients never reach memory,
messages or datasets.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

from medvlp_jax.data.images import ImageError, scale_to_uint8, to_uint8

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
    dataset = _read(data)
    height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if height * width > max_pixels:
        raise ImageError(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    index = frames // 2 if frame == "middle" else 0
    try:
        pixels = pixel_array(dataset, index=index)
    except Exception as error:  # pydicom and its plugins raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"DICOM pixel data cannot be decoded: {reason}") from error
    if pixels.ndim == 3 and pixels.shape[-1] not in (3, 4):
        pixels = pixels[0]
    kind = str(dataset.get("PhotometricInterpretation", "")).upper()
    if kind == "PALETTE COLOR":
        return to_uint8_colour(apply_color_lut(pixels, dataset))
    if pixels.ndim == 3:
        return to_uint8_colour(pixels[:, :, :3])
    grey = _windowed(pixels, dataset)
    inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
    return 255 - grey if kind == "MONOCHROME1" or inverse else grey
