"""Without these, a kind of file that users have would be stored inverted, black, turned, or not at all.

Each real file of `data/odd` is named with what it must become: its shape, the mean grey of a 3 x 3 grid, the
share of pixels at 0 or 255 and the mean of each channel; or the reason why it is refused. The numbers
are of images that were looked at.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib

import cv2
import numpy as np
import pytest

from medvlp_jax.data import build, pipeline
from medvlp_jax.data.images import ImageError, decode_image


@dataclasses.dataclass(frozen=True)
class Look:
    """What a decoded file looks like.

    Attributes:
        shape: of the uint8 array.
        grid: mean grey of 3 x 3 tiles, row by row.
        ends: largest share of pixels that are 0 or 255.
        colour: mean of each channel.
    """

    shape: tuple[int, int, int]
    grid: tuple[int, ...]
    ends: float
    colour: tuple[int, ...]

    def differences(self, image: np.ndarray) -> list[str]:
        """What is not as it must be."""
        found = []
        if image.shape != self.shape or image.dtype != np.uint8:
            return [f"shape {image.shape} {image.dtype}"]
        grid = cv2.resize(image.mean(2).astype(np.float32), (3, 3), interpolation=cv2.INTER_AREA)
        if np.abs(grid.ravel() - self.grid).max() > 3:
            found.append(f"grid {grid.round().tolist()}")
        ends = float(((image == 0) | (image == 255)).mean())
        if ends > self.ends + 0.02:
            found.append(f"{ends:.2f} of the pixels at the ends of the range")
        if np.abs(image.mean((0, 1)) - self.colour).max() > 3:
            found.append(f"channels {image.mean((0, 1)).tolist()}")
        return found


CT = (
    (29, 144, 58, 117, 155, 88, 121, 117, 122),
    0.01,
    (106,),
)  # dark lung and air above a vertebra
CHEST = (88, 114, 101, 124, 143, 136, 171, 178, 149)
BRAIN = ((28, 78, 28, 85, 137, 78, 58, 103, 49), 0.22, (71, 71, 72))
ODD: dict[str, Look | str] = {
    # Chest radiographs: lungs dark, abdomen bright.
    "rgba_png_named.jpg": Look(
        (361, 373, 1), (59, 75, 68, 96, 107, 85, 165, 179, 153), 0.01, (110,)
    ),
    "rgba_real_alpha.png": Look(
        (600, 623, 1), (140, 140, 142, 150, 171, 152, 179, 185, 174), 0.0, (159,)
    ),
    "huge_4280x3520.jpg": Look(
        (3520, 4280, 1), (149, 159, 152, 158, 167, 138, 187, 223, 146), 0.08, (164,)
    ),
    "huge_4298x4300.jpg": Look(
        (4300, 4298, 1), (85, 178, 66, 87, 156, 63, 62, 213, 121), 0.19, (114,)
    ),
    "truncated.jpg": "truncated",
    "tiny_115x148.png": Look((148, 115, 3), *BRAIN),
    "name with spaces, comma and ünï.png": Look((148, 115, 3), *BRAIN),
    "extreme_aspect.jpg": Look(
        (1777, 435, 1), (89, 113, 179, 87, 95, 177, 96, 102, 157), 0.07, (122,)
    ),
    # The first of 21 frames; bright skin above.
    "multiframe_ultrasound.gif": Look(
        (174, 174, 3), (76, 79, 14, 17, 37, 6, 1, 19, 4), 0.37, (28, 28, 28)
    ),
    "uppercase_ext.JPG": Look(
        (560, 560, 3), (17, 78, 29, 36, 50, 17, 40, 41, 8), 0.14, (37, 34, 35)
    ),
    # One file with both photometric interpretations; 255 minus each other.
    "dicom/cxr_monochrome2_jpeg.dcm": Look(
        (1024, 1024, 1), (134, 146, 133, 157, 172, 161, 165, 220, 155), 0.0, (160,)
    ),
    "dicom/cxr_Fake_MONOHR1.dcm": Look(
        (1024, 1024, 1), (121, 109, 122, 98, 83, 94, 90, 35, 100), 0.0, (95,)
    ),
    "dicom/CT_small.dcm": Look((128, 128, 1), *CT),
    "dicom/no_meta.dcm": Look((128, 128, 1), *CT),  # the same CT, one stray byte in front
    # Window 600 +- 800: fat beyond the upper end.
    "dicom/MR_small.dcm": Look(
        (64, 64, 1), (115, 78, 106, 79, 87, 169, 82, 104, 198), 0.06, (113,)
    ),
    "dicom/MR_truncated.dcm": "less than expected",
    # A bone scan, 16 bits signed and 12 bits.
    "dicom/JPEG2000.dcm": Look((1024, 256, 1), (30, 70, 36, 35, 64, 40, 20, 32, 20), 0.0, (39,)),
    "dicom/JPEG-lossy.dcm": Look((1024, 256, 1), (14, 55, 18, 17, 48, 23, 4, 15, 2), 0.01, (22,)),
    # Doppler: red and yellow flow on black.
    "dicom/examples_jpeg2k.dcm": Look(
        (480, 640, 3), (34, 25, 35, 64, 64, 60, 6, 11, 11), 0.58, (40, 35, 29)
    ),
    "dicom/examples_palette.dcm": Look(  # a blue title bar
        (350, 800, 3), (45, 64, 49, 6, 12, 4, 2, 2, 1), 0.42, (16, 20, 25)
    ),
    "dicom/examples_ybr_color.dcm": Look(  # the middle of 30 frames
        (240, 320, 3), (3, 17, 3, 1, 22, 6, 6, 32, 6), 0.41, (10, 11, 11)
    ),
    # The second of two frames: cyan, magenta and yellow bars; the first is red, green and blue.
    "dicom/SC_rgb_rle_2frame.dcm": Look(
        (100, 100, 3), (136, 136, 136, 144, 144, 144, 102, 102, 102), 0.6, (127, 127, 127)
    ),
    "dicom/rtstruct.dcm": "without pixel data",
    "dicom/liver_1frame.dcm": Look((512, 512, 1), (1, 27, 0, 117, 155, 3, 13, 1, 0), 1.0, (35,)),
    "dicom/image_dfl.dcm": Look(
        (512, 512, 1), (181, 64, 106, 161, 92, 168, 120, 86, 165), 0.06, (127,)
    ),
    # MONOCHROME1 of real detectors, 10 and 15 bits, windowed: bone bright, air dark.
    "dicom/mono1_RG3_J2KI.dcm": Look(
        (1760, 1760, 1), (202, 138, 219, 199, 89, 220, 199, 103, 228), 0.44, (177,)
    ),
    "dicom/mono1_RG1_J2KI.dcm": Look(
        (1955, 1841, 1), (164, 182, 162, 189, 199, 184, 218, 225, 207), 0.0, (192,)
    ),
    "nifti/example4d.nii.gz": "NIfTI volume: export the slices",
    "nifti/anatomical.nii": "NIfTI volume: export the slices",
    "nifti/example_nifti2.nii.gz": "NIfTI volume: export the slices",
    "derived/ct_16bit.png": Look((128, 128, 1), *CT),
    "derived/ct_float32.tif": Look((128, 128, 1), *CT),
    "derived/empty.jpg": "empty file",
    "derived/html_not_image.png": "HTML",
    "derived/git_lfs_pointer.jpg": "git lfs pull",
    # One chest radiograph; the first is to be shown turned by a quarter, which its tag says.
    "derived/exif_orientation6.jpg": Look(
        (300, 298, 1), (171, 124, 88, 178, 143, 114, 149, 136, 101), 0.01, (134,)
    ),
    "derived/cmyk.jpg": Look((298, 300, 1), CHEST, 0.01, (134,)),
    "derived/palette.png": Look((298, 300, 1), CHEST, 0.0, (134,)),
    "derived/one_bit.png": Look((298, 300, 1), CHEST, 1.0, (134,)),
    "README.txt": "not an image",
}
DECODED = sorted(name for name, expected in ODD.items() if isinstance(expected, Look))
NEEDS_IMAGECODECS = {"dicom/JPEG-lossy.dcm"}


def read(data_dir: pathlib.Path, name: str) -> np.ndarray:
    if name in NEEDS_IMAGECODECS:
        pytest.importorskip("imagecodecs")
    return decode_image((data_dir / "odd" / name).read_bytes())


def test_every_file_is_named_here(data_dir) -> None:
    folder = data_dir / "odd"
    found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert found == set(ODD)


@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_files_are_decoded_or_refused_with_a_reason(data_dir, name: str) -> None:
    expected = ODD[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected):
            read(data_dir, name)
    else:
        assert expected.differences(read(data_dir, name)) == []


@pytest.mark.parametrize("name", DECODED)
def test_the_check_sees_wrong_images(data_dir, name: str) -> None:
    """The numbers above would be worth nothing if a wrong image had them too."""
    expected = ODD[name]
    assert isinstance(expected, Look)
    image = read(data_dir, name)
    half = 4 * (image.astype(np.float32) - 127.5) + 127.5
    wrong = {
        "inverted": 255 - image,
        "black": np.zeros_like(image),
        "upside down": image[::-1],
        "mirrored": image[:, ::-1],
        "clipped": half.clip(0, 255).astype(np.uint8),
        "dark": image // 4,
    }
    if expected.ends == 1.0:
        del wrong["clipped"]  # two values only: clipping changes nothing
    if name == "dicom/SC_rgb_rle_2frame.dcm":
        del wrong["mirrored"], wrong["clipped"]  # bars of pure colours
    for what, array in wrong.items():
        assert expected.differences(array), what


def test_missing_decoder_is_named(data_dir) -> None:
    if importlib.util.find_spec("imagecodecs"):
        pytest.skip("it is installed")
    with pytest.raises(ImageError, match="pip install imagecodecs"):
        decode_image((data_dir / "odd/dicom/JPEG-lossy.dcm").read_bytes())


def test_a_build_over_all_odd_files_lists_the_rejected(data_dir, tmp_path) -> None:
    folder = data_dir / "odd"
    names = sorted(set(ODD) - {"README.txt"})
    assert len(names) == 39
    (tmp_path / "odd").mkdir()
    for name in names:
        copy = tmp_path / "odd" / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((folder / name).read_bytes())
    rows = [{"image": name, "text": f"File {n}.", "split": "train"} for n, name in enumerate(names)]
    table = tmp_path / "odd" / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    version = build.build_dataset(
        "image_text_folder",
        tmp_path / "built",
        manual_dir=tmp_path / "odd",
        options={"max_rejected": "0.5", "size": "64"},
    )
    lines = (version.parent / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    rejected = {entry["image"]: entry["reason"] for entry in map(json.loads, lines)}
    refused = {name: reason for name, reason in ODD.items() if isinstance(reason, str)}
    del refused["README.txt"]
    if not importlib.util.find_spec("imagecodecs"):
        refused |= dict.fromkeys(NEEDS_IMAGECODECS, "imagecodecs")
    assert set(rejected) == set(refused)
    for name, reason in refused.items():
        assert reason in rejected[name]
    source = pipeline.open_source("image_text_folder/odd", "train", tmp_path / "built")
    assert len(source) == 39 - len(refused)
    for example in source:
        stored = decode_image(example["image"])
        assert min(stored.shape[:2]) == 64
        assert stored.std() > 5
