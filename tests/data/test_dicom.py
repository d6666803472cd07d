"""Without these, radiographs would be stored inverted or through the wrong window, and identifiers kept."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medvlp_jax.data import dicom
from medvlp_jax.data.images import ImageError, decode_image

SIDE = 32


def make(pixels: np.ndarray, *, meta: bool = True, implicit: bool = False, **elements) -> bytes:
    """A DICOM file around the pixels, with identifiers."""
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Secret^Name"
    dataset.PatientID = "12345"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    if meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(buffer, enforce_file_format=True)
    else:
        dataset.save_as(buffer, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


def ramp(dtype=np.uint16, scale: int = 1) -> np.ndarray:
    """0, 1, 2 ... 1023 times scale."""
    return (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * scale).astype(dtype)


def test_linear_window_of_the_standard() -> None:
    # Centre 512, width 257: (511.5 - 128) ... (511.5 + 128) maps to 0 ... 255.
    shown = decode_image(make(ramp(), WindowCenter=512, WindowWidth=257))[:, :, 0].ravel()
    assert shown[383] == 0
    assert shown[640] == 255
    expected = np.clip((np.arange(1024) - 383.5) / 256 * 255, 0, 255).round()
    np.testing.assert_array_equal(shown, expected.astype(np.uint8))


def test_exact_and_sigmoid_windows() -> None:
    exact = decode_image(
        make(ramp(), WindowCenter=512, WindowWidth=256, VOILUTFunction="LINEAR_EXACT")
    )[:, :, 0].ravel()
    expected = np.clip((np.arange(1024) - 384) / 256 * 255, 0, 255).round()
    np.testing.assert_array_equal(exact, expected.astype(np.uint8))
    smooth = decode_image(
        make(ramp(), WindowCenter=512, WindowWidth=256, VOILUTFunction="SIGMOID")
    )[:, :, 0].ravel()
    expected = 255 / (1 + np.exp(-4 * (np.arange(1024) - 512) / 256))
    np.testing.assert_array_equal(smooth, expected.round().astype(np.uint8))


def test_rescale_comes_before_the_window_and_the_first_window_counts() -> None:
    data = make(
        ramp(np.int16),
        RescaleSlope=2,
        RescaleIntercept=-1024,
        WindowCenter=[40, 600],
        WindowWidth=[401, 1000],
    )
    shown = decode_image(data)[:, :, 0].ravel()
    hounsfield = np.arange(1024) * 2 - 1024
    expected = np.clip((hounsfield - (39.5 - 200)) / 400 * 255, 0, 255).round()
    np.testing.assert_array_equal(shown, expected.astype(np.uint8))


def test_monochrome1_and_inverse_are_inverted_once() -> None:
    plain = decode_image(make(ramp()))
    for elements in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        np.testing.assert_array_equal(decode_image(make(ramp(), **elements)), 255 - plain)


def test_real_monochrome1_file_is_the_inverse_of_its_twin(data_dir) -> None:
    folder = data_dir / "odd/dicom"
    plain = decode_image((folder / "cxr_monochrome2_jpeg.dcm").read_bytes())
    inverse = decode_image((folder / "cxr_Fake_MONOHR1.dcm").read_bytes())
    np.testing.assert_array_equal(inverse, 255 - plain)


def test_without_or_with_a_useless_window_percentiles_are_used() -> None:
    plain = decode_image(make(ramp()))
    assert plain.min() == 0
    assert plain.max() == 255
    far_off = decode_image(make(ramp(), WindowCenter=50_000, WindowWidth=10))
    np.testing.assert_array_equal(far_off, plain)
    np.testing.assert_array_equal(decode_image(make(ramp(), WindowCenter=5, WindowWidth=0)), plain)


def test_frames() -> None:
    frames = np.stack([np.full((SIDE, SIDE), v, np.uint8) for v in (10, 20, 30)])
    frames[:, 0, 0] = 0
    data = make(frames, NumberOfFrames=3)
    assert decode_image(data, frame="first")[5, 5, 0] == 10
    assert decode_image(data, frame="middle")[5, 5, 0] == 20


@pytest.mark.parametrize("implicit", [False, True])
def test_file_without_meta_header(implicit: bool) -> None:
    with_meta = decode_image(make(ramp(), implicit=implicit))
    np.testing.assert_array_equal(
        decode_image(make(ramp(), meta=False, implicit=implicit)), with_meta
    )


def test_one_bit_is_black_and_white(data_dir) -> None:
    image = decode_image((data_dir / "odd/dicom/liver_1frame.dcm").read_bytes())
    assert set(np.unique(image).tolist()) == {0, 255}


def test_identifiers_are_not_even_read() -> None:
    data = make(ramp())
    assert "Secret" in str(pydicom.dcmread(io.BytesIO(data)))
    read = dicom._read(data)
    assert "PatientName" not in read
    assert "PatientID" not in read


def test_reasons() -> None:
    with pytest.raises(ImageError, match="too large: 32 x 32"):
        decode_image(make(ramp()), max_pixels=1000)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(make(ramp())[:-100])
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(make(ramp(), SamplesPerPixel=3, PhotometricInterpretation="RGB"))
