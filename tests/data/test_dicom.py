"""Without these, radiographs would be stored inverted or through the wrong window, and identifiers kept."""

from __future__ import annotations

import io
import pathlib
import random

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from medvlp_jax.data import dicom
from medvlp_jax.data.images import ImageError, decode_image

SIDE = 32


def make(
    pixels: np.ndarray,
    *,
    meta: bool = True,
    implicit: bool = False,
    syntax: UID | None = None,
    **elements,
) -> bytes:
    """A DICOM file around the pixels, with identifiers."""
    if syntax is None:
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
    if syntax.is_compressed:
        dataset["PixelData"].VR = "OB"
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


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_every_number_of_bits_fills_the_range(bits: int, kind: str) -> None:
    """Without a window the darkest stored value is black, the brightest white, the middle grey."""
    dtype = np.uint8 if bits == 8 else np.uint16
    values = (np.arange(1024) * ((1 << bits) - 1) // 1023).reshape(SIDE, SIDE).astype(dtype)
    data = make(values, BitsStored=bits, HighBit=bits - 1, PhotometricInterpretation=kind)
    shown = decode_image(data)[:, :, 0].ravel().astype(int)
    expected = np.linspace(0, 255, 1024)
    expected = expected[::-1] if kind == "MONOCHROME1" else expected
    assert np.abs(shown - expected).max() <= 2


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("slope", [1, 0.5])
def test_voi_table_counts_before_the_window(inverted: bool, slope: float) -> None:
    """The table maps 400 ... 599 to a falling or rising ramp of 12 bits; outside it its ends hold."""
    table = np.linspace(4095, 0, 200) if inverted else np.linspace(0, 4095, 200)
    item = Dataset()
    item.LUTDescriptor = [200, 400, 16]  # files often give the word's bits, not the values'
    item.LUTData = table.round().astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    data = make(
        (ramp() / slope).astype(np.uint16),
        RescaleSlope=slope,
        RescaleIntercept=0,
        VOILUTSequence=[item],
        WindowCenter=10,
        WindowWidth=5,
    )
    shown = decode_image(data)[:, :, 0].ravel().astype(int)
    ends = np.clip((np.arange(1024) - 400) / 199, 0, 1) * 255
    assert np.abs(shown - (255 - ends if inverted else ends)).max() <= 1


def test_modality_table_comes_before_the_window() -> None:
    item = Dataset()
    item.LUTDescriptor = [1024, 0, 16]
    item.LUTData = (np.arange(1024, dtype="<u2") * 10).tobytes()
    item["LUTData"].VR = "OW"
    item.ModalityLUTType = "US"
    data = make(ramp(), ModalityLUTSequence=[item], WindowCenter=5120, WindowWidth=2561)
    shown = decode_image(data)[:, :, 0].ravel()
    expected = np.clip((np.arange(1024) * 10 - 3839.5) / 2560 * 255, 0, 255).round()
    np.testing.assert_array_equal(shown, expected.astype(np.uint8))


def test_padding_does_not_darken_the_image() -> None:
    """Scanners fill the corners around their circle with a value far below all others."""
    pixels = ramp(np.int16)
    plain = decode_image(make(pixels))[8:, :, 0]
    pixels[:8] = -20_000
    padded = decode_image(make(pixels, PixelPaddingValue=-20_000))[:, :, 0]
    assert (padded[:8] == 0).all()
    assert padded[8, 0] == 0
    assert padded[-1, -1] == 255
    assert np.abs(padded[20:].astype(int) - plain[12:]).max() < 80
    assert padded[20, 0] == pytest.approx(255 * (640 - 256) / 767, abs=3)


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


def test_padding_byte_before_the_data_set() -> None:
    """What is left when a tool cuts off the file meta header one byte early."""
    bare = make(ramp(), meta=False)
    for pad in (b" ", b"\0"):
        np.testing.assert_array_equal(decode_image(pad + bare), decode_image(bare))


SAMPLES = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"


def sample(name: str) -> np.ndarray:
    """A file that comes with pydicom, decoded."""
    pytest.importorskip("imagecodecs")
    return decode_image((SAMPLES / name).read_bytes())


def test_lossless_jpeg_ls_equals_the_uncompressed_file() -> None:
    plain = sample("MR_small.dcm")
    np.testing.assert_array_equal(sample("MR_small_jpeg_ls_lossless.dcm"), plain)


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm"],
)
def test_lossless_jpeg_and_jpeg_ls_in_colour(name: str) -> None:
    bars = sample(name)
    plain = sample("SC_rgb_rle.dcm")
    assert np.abs(bars.astype(int) - plain).max() <= 3


def test_12_bit_jpeg_shows_what_jpeg_2000_shows() -> None:
    lossy, other = sample("JPEG-lossy.dcm"), sample("JPEG2000.dcm")
    assert lossy.shape == other.shape == (1024, 256, 1)
    assert np.corrcoef(lossy.ravel(), other.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_jpeg_ls_keeps_its_sign(bits: int) -> None:
    codecs = pytest.importorskip("imagecodecs")
    values = (np.arange(1024).reshape(SIDE, SIDE) - 512).astype(np.int16)
    stream = codecs.jpegls_encode((values.astype(np.uint16) & ((1 << bits) - 1)).astype(np.uint16))
    data = make(
        values,
        BitsStored=bits,
        HighBit=bits - 1,
        WindowCenter=0.5,
        WindowWidth=513,
        PixelData=encapsulate([stream]),
        syntax=JPEGLSLossless,
    )
    plain = make(values, WindowCenter=0.5, WindowWidth=513)
    np.testing.assert_array_equal(decode_image(data), decode_image(plain))


def test_damaged_compressed_frames_give_pixels_or_a_reason() -> None:
    pytest.importorskip("imagecodecs")
    for name in ("JPEG-lossy.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm"):
        whole = (SAMPLES / name).read_bytes()
        start = whole.index(b"\xff\xd8")
        for seed in range(40):
            chance = random.Random(seed)
            data = bytearray(whole)
            for _ in range(chance.choice((1, 3, 10))):
                data[chance.randrange(start, len(data))] = chance.randrange(256)
            if seed % 4 == 0:
                del data[chance.randrange(start, len(data)) :]
            try:
                assert decode_image(bytes(data)).dtype == np.uint8
            except ImageError as error:
                assert str(error)  # noqa: PT017


def test_frame_of_another_size_than_the_tags_is_refused() -> None:
    codecs = pytest.importorskip("imagecodecs")
    stream = codecs.jpegls_encode(np.zeros((16, 16), np.uint16))
    data = make(ramp(), PixelData=encapsulate([stream]), syntax=JPEGLSLossless)
    with pytest.raises(ImageError, match="the tags say"):
        decode_image(data)


def test_one_bit_is_black_and_white(data_dir) -> None:
    image = decode_image((data_dir / "odd/dicom/liver_1frame.dcm").read_bytes())
    assert set(np.unique(image).tolist()) == {0, 255}


def test_identifiers_are_not_even_read() -> None:
    data = make(ramp())
    assert "Secret" in str(pydicom.dcmread(io.BytesIO(data)))
    read = dicom.read_tags(data)
    assert "PatientName" not in read
    assert "PatientID" not in read


def test_reasons() -> None:
    with pytest.raises(ImageError, match="too large: 32 x 32"):
        decode_image(make(ramp()), max_pixels=1000)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(make(ramp())[:-100])
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(make(ramp(), SamplesPerPixel=3, PhotometricInterpretation="RGB"))
