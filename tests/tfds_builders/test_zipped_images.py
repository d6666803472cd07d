"""Without it an archive of a terabyte would have to be unpacked, or a wrong member could be read."""

from __future__ import annotations

import concurrent.futures
import zipfile

import cv2
import numpy as np
import pytest

from medvlp_jax.data.images import ImageError
from medvlp_jax.errors import UserError
from tfds_builders.zipped_images import ZippedImages, find_place


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((20, 20), value, np.uint8))[1].tobytes()


@pytest.fixture
def archives(tmp_path):
    """Two archives: members stored, deflated, in folders, behind another file, written as a stream."""
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    with zipfile.ZipFile(first, "w") as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/0.png", png(0))
        archive.writestr("folder/1.png", png(1), zipfile.ZIP_DEFLATED)
    first.write_bytes(b"#!/bin/sh\n" + first.read_bytes())
    with second.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("1.png", png(99))
        with archive.open("2.png", "w", force_zip64=True) as member:
            member.write(png(2))
        archive.writestr("3.png", b"no image")
        archive.writestr("4.png", png(4), zipfile.ZIP_LZMA)
    return first, second


def test_members_are_read_from_several_threads(archives) -> None:
    zipped = ZippedImages(archives)
    assert len(zipped) == 5
    assert "2.png" in zipped
    assert "folder/0.png" not in zipped
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        images = list(pool.map(zipped.read, ["0.png", "1.png", "2.png"] * 20))
    assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2] * 20


def test_what_cannot_be_read_says_why(archives, tmp_path) -> None:
    zipped = ZippedImages(archives)
    for name, reason in (
        ("5.png", "in none of the archives"),
        ("3.png", "not an image"),
        ("4.png", r"packed in an unknown way in b\.zip"),
    ):
        with pytest.raises(ImageError, match=reason):
            zipped.read(name)
    archives[0].write_bytes(archives[0].read_bytes()[:60])  # cut after its contents were read
    with pytest.raises(ImageError, match=r"is not where a\.zip says|cannot be read|checksum"):
        zipped.read("0.png")
    (tmp_path / "c.zip").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"c\.zip is not a complete zip file"):
        ZippedImages([tmp_path / "c.zip"])
    assert len(ZippedImages([])) == 0


def test_places_of_images(archives, tmp_path) -> None:
    zipped = ZippedImages(archives)
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "7.png").write_bytes(b"")
    assert find_place(tmp_path, "1.png", ("x", "y"), zipped) == ""
    assert find_place(tmp_path, "7.png", ("x", "y"), zipped) == "y/7.png"
    assert find_place(tmp_path, "8.png", ("x", "y"), zipped) == "x/8.png"
