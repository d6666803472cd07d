"""Without these, one damaged file could stop a build of a day, or print a patient's name."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

from medvlp_jax.data import dicom
from medvlp_jax.data.images import ImageError, decode_image

NAMES = ("CompressedSamples", "1CT1", "4MR1", "Lestrade", "Phantom", "20040119")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def damaged(whole: bytes, seed: int, first: int, last: int) -> bytes:
    """A few bytes of the header changed; every fourth file is also cut."""
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(chance.choice((1, 3, 10))):
        data[chance.randrange(first, min(last, len(data)))] = chance.randrange(256)
    if seed % 4 == 0:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["exif_orientation6.jpg", "palette.png", "one_bit.png", "ct_float32.tif"]
)
def test_damaged_images_give_pixels_or_a_reason(data_dir, name) -> None:
    whole = (data_dir / "odd" / "derived" / name).read_bytes()
    for seed in range(25):
        try:
            image = decode_image(damaged(whole, seed, 0, 600))
        except ImageError as error:
            assert str(error)  # noqa: PT017
        else:
            assert image.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "SC_rgb_rle_2frame.dcm", "rtstruct.dcm"]
)
def test_damaged_dicom_gives_pixels_or_a_reason_without_names(data_dir, name) -> None:
    whole = (data_dir / "odd" / "dicom" / name).read_bytes()
    for seed in range(80):
        try:
            decode_image(damaged(whole, seed, 132, 2500))
        except ImageError as error:
            assert not any(name in str(error) for name in NAMES)  # noqa: PT017


def contradiction(**tags) -> bytes:
    """A real CT whose tags were changed."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for key, value in tags.items():
        setattr(dataset, key, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "PALETTE COLOR"},  # without a palette
        {"Rows": 5000},
        {"BitsAllocated": 12},
        {"SamplesPerPixel": 2},
        {"NumberOfFrames": 7},
    ],
)
def test_contradictory_dicom_is_refused(tags) -> None:
    with pytest.raises(ImageError, match="cannot be decoded") as raised:
        decode_image(contradiction(**tags))
    assert not any(name in str(raised.value) for name in NAMES)


def test_unreadable_tag_is_not_quoted(data_dir) -> None:
    """The reader's own message would quote the bytes of the element."""
    whole = (data_dir / "odd/dicom/JPEG2000.dcm").read_bytes()
    place = whole.index(b"\x28\x00\x10\x00US")
    with pytest.raises(ImageError, match="DICOM"):
        decode_image(whole[: place + 4] + b"U\x8c" + whole[place + 6 :])


def test_only_tags_about_pixels_are_read(data_dir) -> None:
    allowed = {pydicom.datadict.tag_for_keyword(k) for k in dicom._PIXEL_TAGS}
    assert not {0x0010, 0x0020, 0x0032, 0x0040} & {tag >> 16 for tag in allowed if tag}
    for file in sorted((data_dir / "odd" / "dicom").glob("*.dcm")):
        try:
            read = dicom.read_tags(file.read_bytes())
        except ImageError:
            continue
        assert {int(element.tag) for element in read} <= allowed, file.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations(orientation) -> None:
    """A white quarter in the stored upper left corner ends up where the tag says."""
    stored = np.zeros((32, 48), np.uint8)
    stored[:16, :24] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(Image.fromarray(stored), exif=exif))[:, :, 0]
    assert image.shape == ((32, 48) if orientation <= 4 else (48, 32))
    corner = ((0, 0), (0, -1), (-1, -1), (-1, 0))[(orientation - 1) % 4]
    assert image[corner] == 255
    assert (image > 127).mean() == 0.25


def test_real_exif_file_is_turned_clockwise(data_dir) -> None:
    data = (data_dir / "odd/derived/exif_orientation6.jpg").read_bytes()
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    turned = cv2.rotate(raw, cv2.ROTATE_90_CLOCKWISE).astype(int)
    assert np.abs(decode_image(data)[:, :, 0] - turned).max() <= 3


def test_real_transparency_is_composited_on_black(data_dir) -> None:
    data = (data_dir / "odd/rgba_real_alpha.png").read_bytes()
    rgba = np.asarray(Image.open(io.BytesIO(data))).astype(np.float32)
    expected = rgba[:, :, 1] * rgba[:, :, 3] / 255
    assert np.abs(decode_image(data)[:, :, 0] - expected).max() <= 1.5


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "PNG", "GIF"])
def test_lossless_formats(kind) -> None:
    shape = (40, 50) if kind == "GIF" else (40, 50, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(Image.fromarray(pixels), kind, **options))
    np.testing.assert_array_equal(image, pixels.reshape(40, 50, -1))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (20, 20), value) for value in (40, 90, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data) == 40).all()


def test_decompression_bomb_is_refused_before_decoding() -> None:
    with pytest.raises(ImageError, match="too large"):
        decode_image(encoded(Image.new("1", (10_000, 10_000))))


def test_monochrome1_of_real_detectors_shows_air_dark(data_dir) -> None:
    folder = data_dir / "odd" / "dicom"
    chest = decode_image((folder / "mono1_RG1_J2KI.dcm").read_bytes())[:, :, 0]
    lungs = (chest[500:900, 300:600].mean() + chest[500:900, 1250:1550].mean()) / 2
    assert lungs + 30 < chest[500:900, 850:1000].mean()  # the spine
    leg = decode_image((folder / "mono1_RG3_J2KI.dcm").read_bytes())[:, :, 0]
    assert leg[500:700, 550:620].mean() < 60 < 150 < leg[1450:1600, 800:950].mean()


def test_colours_of_palette_ybr_and_rgb(data_dir) -> None:
    folder = data_dir / "odd" / "dicom"
    palette = decode_image((folder / "examples_palette.dcm").read_bytes()).astype(int)
    assert palette[10, :, 2].mean() > palette[10, :, 0].mean() + 20  # the blue title bar
    ybr = decode_image((folder / "examples_ybr_color.dcm").read_bytes()).astype(int)
    # An echocardiogram is black and grey; YBR taken for RGB would be green.
    assert np.abs(ybr[:, :, 0] - ybr[:, :, 1]).mean() < 5
    assert np.median(ybr) < 10
    flow = decode_image((folder / "examples_jpeg2k.dcm").read_bytes()).astype(int)
    assert (flow[:, :, 0] - flow[:, :, 2]).max() > 150  # red and yellow flow
    bars = decode_image((folder / "SC_rgb_rle_2frame.dcm").read_bytes())
    assert [tuple(bars[y, 50].tolist()) for y in (5, 25, 45, 65, 95)] == [
        (0, 255, 255),
        (255, 0, 255),
        (255, 255, 0),
        (255, 255, 255),
        (0, 0, 0),
    ]
