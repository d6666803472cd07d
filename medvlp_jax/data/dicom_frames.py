"""Compressed DICOM frames that pydicom's plugins do not decode: JPEG of 12 bits, lossless JPEG, JPEG-LS."""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame

from medvlp_jax.data.images import ImageError

_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)


def decompress_frame(dataset: pydicom.Dataset, frame: int) -> bool:
    """Replaces compressed pixel data by one decoded frame, if the transfer syntax is one of ours.

    Args:
        dataset: tags about pixels; changed in place to an uncompressed file with this one frame.
        frame: which, from 0.

    Returns:
        Whether the data set was changed.

    Raises:
        ImageError: the decoder is not installed, or the frame is not what the tags say.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _JPEG + _JPEG_LS:
        return False
    try:
        import imagecodecs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if syntax == uid.JPEGExtended12Bit and int(dataset.BitsStored) <= 8:
            return False  # Pillow decodes these
        raise ImageError(f"DICOM in {syntax.name}: `pip install imagecodecs` to read it") from error
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    data = get_frame(dataset.PixelData, frame, number_of_frames=frames)
    decode = imagecodecs.jpegls_decode if syntax in _JPEG_LS else imagecodecs.jpeg_decode
    pixels = np.asarray(decode(data))
    samples = int(dataset.SamplesPerPixel)
    expected = (dataset.Rows, dataset.Columns, samples)[: 2 if samples == 1 else 3]
    if pixels.shape != expected:
        raise ImageError(
            f"DICOM pixel data cannot be decoded: the frame is {pixels.shape}, the tags say {expected}"
        )
    if pixels.dtype.itemsize * 8 < int(dataset.BitsStored):
        raise ImageError(
            f"DICOM pixel data cannot be decoded: {dataset.BitsStored} bits stored, "
            f"{pixels.dtype.itemsize * 8} in the frame"
        )
    if syntax in _JPEG and samples == 3:
        dataset.PhotometricInterpretation = "RGB"  # the decoder has undone YBR
    _store(dataset, pixels)
    return True


def _store(dataset: pydicom.Dataset, pixels: np.ndarray) -> None:
    """Puts decoded pixels [H, W] or [H, W, samples] in place of the compressed ones."""
    bits = pixels.dtype.itemsize * 8
    if dataset.PixelRepresentation and pixels.ndim == 2:
        # The code stream knows no sign: the upper bits of two's complement are cut off in it.
        unused = bits - int(dataset.BitsStored)
        signed = pixels.astype(np.dtype(f"int{bits}"))
        pixels = (signed << unused) >> unused
    dataset.BitsAllocated = bits
    dataset.PixelData = (
        np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    )
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    dataset.NumberOfFrames = 1
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
