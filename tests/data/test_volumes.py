"""Without it left and right of a brain could be swapped, or a CT series lose slices unnoticed."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless

from medvlp_jax.data.images import ImageError, decode_image
from medvlp_jax.data.volumes import (
    Volume,
    looks_like_ct,
    oriented,
    read_nifti,
    read_volume,
    resampled,
    slice_weights,
    windowed,
)

SPACING = (4.0, 2.0, 1.5)
AXIAL = [1, 0, 0, 0, 1, 0]


@pytest.fixture
def phantom() -> np.ndarray:
    """[D, H, W] = 3 x 4 x 5 with another value everywhere."""
    return np.arange(60, dtype=np.float32).reshape(3, 4, 5) * 10 - 100


def ras(voxels: np.ndarray) -> nibabel.Nifti1Image:
    """The phantom as a canonical NIfTI image: x to the right, y to the front, z to the head."""
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = (-7, 3, 11)
    return nibabel.Nifti1Image(voxels[:, ::-1, ::-1].transpose(2, 1, 0), affine)


def slice_file(
    pixels: np.ndarray, position: Sequence[float], orientation: Sequence[float], **changes: Any
) -> pydicom.Dataset:
    """One CT slice of signed 16-bit pixels with a patient's name."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset.PatientName, dataset.Modality, dataset.SeriesInstanceUID = "Doe^Jane", "CT", "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = (
        list(position),
        list(orientation),
    )
    dataset.PixelSpacing = [SPACING[1], SPACING[2]]
    dataset.RescaleSlope, dataset.RescaleIntercept = 10, -100
    dataset.PixelData = pixels.astype("<i2").tobytes()
    for key, value in changes.items():
        setattr(dataset, key, value)
    return dataset


def series(voxels: np.ndarray) -> list[pydicom.Dataset]:
    """An axial series, from foot to head."""
    raw = (voxels + 100) / 10
    return [slice_file(raw[k], [0, 0, 50 + SPACING[0] * k], AXIAL) for k in range(len(raw))]


@pytest.fixture
def save(tmp_path) -> Callable[[list[pydicom.Dataset]], pathlib.Path]:
    """Saves files under names that do not follow their order."""

    def run(datasets: list[pydicom.Dataset]) -> pathlib.Path:
        folder = tmp_path / "series"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        numbers = np.random.default_rng(1).permutation(len(datasets))
        for k, dataset in zip(numbers, datasets, strict=True):
            dataset.save_as(folder / f"IM{k:03d}", enforce_file_format=True)
        return folder

    return run


ORIENTATIONS = [
    np.asarray([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_of_nifti_gives_the_same_volume(phantom, tmp_path, orientation) -> None:
    file = tmp_path / "a.nii.gz"
    nibabel.save(ras(phantom).as_reoriented(orientation), file)
    volume = read_volume(file)
    np.testing.assert_array_equal(volume.voxels, phantom)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)


def test_scaling_and_time_of_nifti(phantom, tmp_path) -> None:
    values = ras(phantom)
    many = np.stack([np.asarray(values.dataobj) + 1000 * t for t in range(3)], axis=-1)
    image = nibabel.Nifti1Image(many.astype(np.int16), values.affine)
    image.header.set_slope_inter(2, -5)
    file = tmp_path / "a.nii"
    nibabel.save(image, file)
    stored = np.asarray(nibabel.load(file).dataobj)[..., 2].transpose(2, 1, 0)[:, ::-1, ::-1]  # type: ignore
    np.testing.assert_allclose(read_nifti(file, time=2).voxels, stored)
    with pytest.raises(ImageError, match="with 3 volumes has no 3"):
        read_nifti(file, time=3)


def test_nifti_and_dicom_agree(phantom, tmp_path, save) -> None:
    nibabel.save(ras(phantom), tmp_path / "a.nii")
    a, b = read_volume(tmp_path / "a.nii"), read_volume(save(series(phantom)))
    np.testing.assert_array_equal(a.voxels, phantom)
    np.testing.assert_array_equal(b.voxels, phantom)
    np.testing.assert_allclose(a.spacing, b.spacing)
    assert (a.modality, b.modality) == ("", "CT")


@pytest.mark.parametrize("turned", [False, True])
def test_sagittal_series_are_turned(phantom, save, turned) -> None:
    raw = (phantom + 100) / 10
    files = []
    for k in range(phantom.shape[2]):
        # Columns lead to the back, rows to the feet, slices to the left.
        pixels = raw[::-1, :, k]
        position = [k * 1.5, 0.0, (phantom.shape[0] - 1) * 4.0]
        orientation = [0, 1, 0, 0, 0, -1]
        if turned:  # the same slice from its other side: columns lead to the front
            pixels, orientation = pixels[:, ::-1], [0, -1, 0, 0, 0, -1]
            position[1] = (phantom.shape[1] - 1) * 2.0
        files.append(slice_file(pixels, position, orientation, PixelSpacing=[4.0, 2.0]))
    volume = read_volume(save(files))
    np.testing.assert_array_equal(volume.voxels, phantom)
    np.testing.assert_allclose(volume.spacing, SPACING)


def test_oblique_slices_keep_their_spacing(phantom, save) -> None:
    angle = np.deg2rad(20)
    down = [0, np.cos(angle), np.sin(angle)]
    normal = np.cross([1, 0, 0], down)
    raw = (phantom + 100) / 10
    files = [slice_file(raw[k], list(4.0 * k * normal), [1, 0, 0, *down]) for k in range(3)]
    volume = read_volume(save(files))
    np.testing.assert_array_equal(volume.voxels, phantom)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-5)


def multi_frame(phantom: np.ndarray, order: list[int]) -> pydicom.Dataset:
    """An enhanced CT object, whose frames are stored in any order."""
    raw = (phantom + 100) / 10
    dataset = slice_file(raw[order], [0, 0, 0], AXIAL, NumberOfFrames=len(order))
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, key)
    dataset.RescaleIntercept = None
    shared, orientation, measures, values = (pydicom.Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = AXIAL
    measures.PixelSpacing = [SPACING[1], SPACING[2]]
    values.RescaleSlope, values.RescaleIntercept = 10, -100
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, 50 + SPACING[0] * k]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


@pytest.mark.parametrize("compressed", [False, True])
def test_multi_frame_files(phantom, tmp_path, compressed) -> None:
    dataset = multi_frame(phantom, [2, 0, 1])
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    file = tmp_path / "many.dcm"
    dataset.save_as(file, enforce_file_format=True)
    volume = read_volume(file)
    np.testing.assert_array_equal(volume.voxels, phantom)
    np.testing.assert_allclose(volume.spacing, SPACING)


def test_slices_are_rescaled_one_by_one(phantom, save) -> None:
    files = series(phantom)
    files[1].RescaleSlope, files[1].RescaleIntercept = 2, 7
    volume = read_volume(save(files))
    np.testing.assert_array_equal(volume.voxels[0], phantom[0])
    np.testing.assert_array_equal(volume.voxels[1], (phantom[1] + 100) / 10 * 2 + 7)


def test_padding_becomes_the_smallest_real_value(phantom, save) -> None:
    files = series(phantom)
    files[0].PixelPaddingValue = 0  # the value of the first voxel
    volume = read_volume(save(files))
    assert volume.voxels[0, 0, 0] == phantom[0, 0, 1]


def broken(kind: str, files: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
    """A series of seven slices with one fault."""
    if kind == "gap":
        return files[:3] + files[4:]
    if kind == "twice":
        return [*files, files[2]]
    if kind == "mixed":
        files[2].SeriesInstanceUID = "1.2.3.5"
    if kind == "scout":
        files[2].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    if kind == "size":
        files[2].PixelSpacing = [9, 9]
    if kind == "position":
        del files[2].ImagePositionPatient
    if kind == "truncated":
        files[2].PixelData = files[2].PixelData[:-2]
    if kind == "colour":
        files[2].SamplesPerPixel = 3
    return files


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gap", r"slices are missing: 8\.00 mm between IM\d+ and IM\d+, elsewhere 4\.00 mm"),
        ("twice", r"1 slices lie where another does, the first are IM\d+ and IM\d+"),
        ("mixed", "holds 2 mixed DICOM series"),
        ("scout", "have different directions"),
        ("size", "have slices of different size"),
        ("position", r"IM\d+ has no position, orientation or pixel spacing"),
        ("truncated", r"IM\d+: pixel data cannot be decoded"),
        ("colour", r"IM\d+ is in colour"),
    ],
)
def test_faulty_series_are_refused(save, kind, message) -> None:
    phantom = np.arange(7 * 20, dtype=np.float32).reshape(7, 4, 5) * 10 - 100
    with pytest.raises(ImageError, match=message) as caught:
        read_volume(save(broken(kind, series(phantom))))
    assert "Doe" not in str(caught.value)
    assert "1.2.3" not in str(caught.value)


def test_other_files_in_the_folder_of_a_series(phantom, save) -> None:
    folder = save(series(phantom))
    (folder / "notes.txt").write_text("invented")
    (folder / "DICOMDIR").write_bytes((folder / "IM000").read_bytes())
    np.testing.assert_array_equal(read_volume(folder).voxels, phantom)
    for file in folder.glob("IM*"):
        file.unlink()
    with pytest.raises(ImageError, match="holds no DICOM file"):
        read_volume(folder)


def test_files_that_are_no_volumes(phantom, tmp_path) -> None:
    good = tmp_path / "a.nii.gz"
    nibabel.save(ras(phantom), good)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:-40])
    text = tmp_path / "text.nii"
    text.write_text("not a volume")
    other = tmp_path / "a.png"
    other.write_bytes(b"\x89PNG")
    flat = tmp_path / "flat.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), flat)
    content = bytearray(flat.read_bytes())
    content[312:328] = bytes(16)  # third row of the affine
    flat.write_bytes(content)
    for file, message in (
        (cut, "damaged NIfTI"),
        (text, "damaged NIfTI"),
        (other, r"not a volume: expected \.nii"),
        (flat, "axes do not span space"),
        (tmp_path / "gone.dcm", "cannot be read"),
        (tmp_path / "gone.nii", "damaged NIfTI"),
    ):
        with pytest.raises(ImageError, match=message):
            read_volume(file)
    with pytest.raises(ImageError, match="volume_folder"):
        decode_image(good.read_bytes())


def test_too_many_voxels_are_refused_before_they_are_read(tmp_path, monkeypatch, phantom) -> None:
    nibabel.save(ras(phantom), tmp_path / "a.nii")
    monkeypatch.setattr("medvlp_jax.data.volumes.MAX_VOXELS", 59)
    with pytest.raises(ImageError, match="5 x 4 x 3 voxels: expected 1 to 59"):
        read_volume(tmp_path / "a.nii")


def test_real_files(data_dir) -> None:
    odd = data_dir / "odd"
    brain = read_volume(odd / "nifti/anatomical.nii")
    assert brain.voxels.shape == (25, 41, 33)
    assert brain.spacing == (2.0, 2.0, 2.0)
    # The file counts x to the left (affine -2, 0, 0), as the result does; y to the front is turned.
    stored = np.asarray(nibabel.load(odd / "nifti/anatomical.nii").dataobj)  # type: ignore
    np.testing.assert_array_equal(
        brain.voxels, stored.transpose(2, 1, 0)[:, ::-1].astype(np.float32)
    )
    first = read_volume(odd / "nifti/example4d.nii.gz")
    assert first.voxels.shape == (24, 96, 128)
    np.testing.assert_allclose(first.spacing, (2.2, 2.0, 2.0), atol=1e-3)
    assert read_volume(odd / "nifti/example_nifti2.nii.gz").voxels.shape == (12, 20, 32)
    scan = read_volume(odd / "dicom/CT_small.dcm")
    assert (scan.voxels.shape, scan.modality) == ((1, 128, 128), "CT")
    np.testing.assert_allclose(scan.spacing, (5.0, 0.661468, 0.661468))
    assert (scan.voxels.min(), scan.voxels.max()) == (-896, 1167)
    assert [looks_like_ct(v) for v in (brain, first, scan)] == [False, False, True]
    for name, message in (
        ("MR_truncated", "fewer|less than expected"),
        ("rtstruct", "without pixel data"),
        ("examples_ybr_color", "in colour"),
        ("cxr_monochrome2_jpeg", "no position"),
    ):
        with pytest.raises(ImageError, match=message):
            read_volume(odd / f"dicom/{name}.dcm")


def test_slice_weights() -> None:
    np.testing.assert_allclose(slice_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(slice_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], 1e-6)
    np.testing.assert_allclose(
        slice_weights(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], rtol=1e-6
    )
    for stored, wanted in itertools.product((1, 5, 7), (1, 3, 7, 20)):
        np.testing.assert_allclose(slice_weights(stored, wanted).sum(axis=1), 1, rtol=1e-6)


def test_resampling_keeps_the_physical_size() -> None:
    voxels = np.random.default_rng(0).normal(size=(6, 8, 10)).astype(np.float32)
    volume = Volume(voxels, (3.0, 2.0, 1.0))
    small = resampled(volume, depth=4, size=5)
    # 16 x 10 mm: the side of 10 pixels becomes 5, that of 8 (16 after squaring) 8.
    assert small.voxels.shape == (4, 8, 5)
    np.testing.assert_allclose(small.spacing, (4.5, 2.0, 2.0))
    for old, new in zip((voxels.shape, small.voxels.shape), (volume, small), strict=True):
        np.testing.assert_allclose(np.asarray(old) * new.spacing, (18, 16, 10))
    np.testing.assert_allclose(resampled(volume, depth=3).voxels.mean(), voxels.mean(), atol=0.02)
    same = resampled(Volume(voxels, (3.0, 1.0, 1.0)))
    np.testing.assert_array_equal(same.voxels, voxels)
    unknown = resampled(Volume(voxels, (np.nan, np.nan, np.nan)), size=4)
    assert unknown.voxels.shape == (6, 4, 5)


def test_windows() -> None:
    values = np.asarray([-1000, -160, 40, 240, 3000], np.float32).reshape(1, 1, 5)
    assert windowed(Volume(values, (1, 1, 1)), (40, 400)).ravel().tolist() == [0, 0, 128, 255, 255]
    mr = np.linspace(0, 1000, 1001, dtype=np.float32).reshape(1, 7, 143)
    grey = windowed(Volume(mr, (1, 1, 1)), None, (10, 90))
    assert (grey.ravel()[100], grey.ravel()[500], grey.ravel()[900]) == (0, 128, 255)
    flat = windowed(Volume(np.full((1, 2, 2), 7, np.float32), (1, 1, 1)), None)
    assert (flat == 0).all()


def test_one_slice_of_unknown_thickness(phantom, save) -> None:
    volume = read_volume(save(series(phantom)[:1]))
    assert volume.voxels.shape == (1, 4, 5)
    assert np.isnan(volume.spacing[0])
    assert volume.spacing[1:] == SPACING[1:]


def test_damaged_geometry() -> None:
    with pytest.raises(ImageError, match="do not span space"):
        oriented(np.zeros((2, 2, 2)), np.asarray([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]))
