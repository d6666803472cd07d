"""Dummy files in official layouts. Without them no builder of a restricted dataset could be tested."""

from __future__ import annotations

import csv
import gzip
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medvlp_jax.data import build, pipeline
from medvlp_jax.data.spec import load_spec

Table = Sequence[Mapping[str, object]]


@pytest.fixture
def save_image() -> Callable[..., None]:
    """`save_image(path, height, width)`: noise as PNG or JPEG, by the suffix."""

    def save(path: pathlib.Path, height: int = 40, width: int = 50) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32("/".join(path.parts[-4:]).encode())
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
        assert cv2.imwrite(str(path), pixels)

    return save


@pytest.fixture
def save_dicom() -> Callable[..., None]:
    """`save_dicom(path, height, width)`: noise as an uncompressed 8-bit DICOM."""

    def save(path: pathlib.Path, height: int = 40, width: int = 50) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
        dataset.Rows, dataset.Columns = height, width
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelRepresentation = 0
        rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
        dataset.PixelData = rng.integers(0, 255, (height, width), dtype=np.uint8).tobytes()
        dataset.save_as(path, enforce_file_format=True)

    return save


@pytest.fixture
def save_table() -> Callable[..., None]:
    """`save_table(path, rows)`: CSV with the columns of the first row, gzip-compressed if named .gz."""

    def save(path: pathlib.Path, rows: Table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return save


@pytest.fixture
def save_nih(save_image: Callable[..., None]) -> Callable[..., list[str]]:
    """`save_nih(folder, images)`: ChestX-ray14 with two images per patient; returns the file names. The
    last tenth of the patients is the published test set."""

    def save(folder: pathlib.Path, images: int) -> list[str]:
        names = [f"{1 + i // 2:08d}_{i % 2:03d}.png" for i in range(images)]
        lines = [
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
            "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
        ]
        for name in names:
            save_image(folder / "images_001" / "images" / name)
            finding = "Effusion" if name.endswith("1.png") else "No Finding"
            patient, number = int(name[:8]), int(name[9:12])
            lines.append(f"{name},{finding},{number},{patient},58,M,PA,2682,2749,0.143,0.143,")
        box = f"{names[0]},Effusion,10.0,20.0,25.0,10.0,,,\n"
        (folder / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
        (folder / "BBox_List_2017.csv").write_text(
            f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{box}"
        )
        edge = 2 * round(0.45 * images)
        (folder / "train_val_list.txt").write_text("\n".join(names[:edge]))
        (folder / "test_list.txt").write_text("\n".join(names[edge:]))
        return names

    return save


@pytest.fixture
def built(tmp_path: pathlib.Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """`built(name, folder, **options)`: builds into `tmp_path / "out"`; split -> image_id -> example."""

    def run(name: str, folder: pathlib.Path, /, **options: str) -> dict[str, dict[str, Any]]:
        out = tmp_path / "out"
        path = build.build_dataset(name, out, manual_dir=folder, options=options)
        dataset = path.parent.relative_to(out).as_posix()
        splits = {p.name.split(".")[0].split("-")[1] for p in path.glob("*.array_record*")}
        assert splits <= set(load_spec(name).splits)
        return {
            split: {e["image_id"]: e for e in pipeline.open_source(dataset, split, out)}
            for split in sorted(splits)
        }

    return run
