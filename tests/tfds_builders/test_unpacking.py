"""Without these, an archive from the internet could write anywhere on the disk, or fill it."""

from __future__ import annotations

import io
import pathlib
import tarfile
import zipfile
from typing import Any

import pytest

from medvlp_jax.errors import UserError
from tfds_builders import unpacking


def write_tar(file: pathlib.Path, members: dict[str, bytes], mode: Any = "w:gz", **kinds) -> None:
    with tarfile.open(file, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind
            tar.addfile(info)


def write_zip(file: pathlib.Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_archives_are_known_by_their_content(tmp_path, kind) -> None:
    file = tmp_path / "archive.download"
    members = {"images/a.png": b"a" * 3000, "images/sub/b.png": b"", "table.csv": b"x,y\n"}
    write_zip(file, members) if kind == "zip" else write_tar(file, members, kind)
    (tmp_path / "images").mkdir()  # of another archive
    (tmp_path / "images" / "z.png").write_bytes(b"z")
    for _ in range(2):
        assert unpacking.unpack(file) == 3
        assert {n: (tmp_path / n).read_bytes() for n in members} == members
    assert (tmp_path / "images" / "z.png").read_bytes() == b"z"


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_paths_out_of_the_folder_are_refused(tmp_path, write, name) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write(folder / "archive", {name: b"x"})
    with pytest.raises(UserError, match="leads out of the folder"):
        unpacking.unpack(folder / "archive")
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "archive"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_link_that_lies_there_is_not_followed(tmp_path, write) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path)
    write(folder / "archive", {"images/out.txt": b"x"})
    with pytest.raises(UserError, match="leads out of the folder"):
        unpacking.unpack(folder / "archive")
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    "kind",
    [(tarfile.SYMTYPE, "/etc"), (tarfile.LNKTYPE, "../x"), (tarfile.FIFOTYPE, "")],
)
def test_links_and_devices_are_refused(tmp_path, kind) -> None:
    write_tar(tmp_path / "t.tar", {}, "w", link=kind)
    with pytest.raises(UserError, match="'link' is a link or a device"):
        unpacking.unpack(tmp_path / "t.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar"]


def test_links_in_a_zip_are_refused(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc")
    with pytest.raises(UserError, match="'link' is a link"):
        unpacking.unpack(tmp_path / "z.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["z.zip"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_bombs_are_refused_before_they_are_written(tmp_path, write, monkeypatch) -> None:
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 1000)
    write(tmp_path / "bomb", {"zeros": bytes(3_000_000)})
    with pytest.raises(UserError, match=r"holds 1 members of 3000000 bytes or more"):
        unpacking.unpack(tmp_path / "bomb")
    assert not (tmp_path / "zeros").exists()
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 3_000_000)
    assert unpacking.unpack(tmp_path / "bomb") == 1
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 0)
    with pytest.raises(UserError, match="holds 1 members"):
        unpacking.unpack(tmp_path / "bomb")


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_archives_are_said_to_be(tmp_path, write, damage) -> None:
    file = tmp_path / "archive"
    write(file, {"a": bytes(range(256)) * 400, "b": b"b" * 100})
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[100:140] = bytes(40)
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"archive is (damaged|no tar or zip)"):
        unpacking.unpack(file)


def test_other_files_and_passwords(tmp_path) -> None:
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(UserError, match="is no tar or zip archive; delete it"):
        unpacking.unpack(tmp_path / "page")
    write_zip(tmp_path / "z.zip", {"a": b"secret"})
    data = bytearray((tmp_path / "z.zip").read_bytes())
    for place in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[place] |= 1
    (tmp_path / "z.zip").write_bytes(data)
    with pytest.raises(UserError, match="'a' needs a password"):
        unpacking.unpack(tmp_path / "z.zip")
    write_zip(tmp_path / "self.zip", {"self.zip": b""})
    with pytest.raises(UserError, match="would replace the archive"):
        unpacking.unpack(tmp_path / "self.zip")


def test_full_disk_is_said_before_a_zip_is_unpacked(tmp_path, monkeypatch) -> None:
    write_zip(tmp_path / "z.zip", {"a": bytes(1000)})
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda p: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match="needs 1000 bytes, 10 are free"):
        unpacking.unpack(tmp_path / "z.zip")
    assert not (tmp_path / "a").exists()
