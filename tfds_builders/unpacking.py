"""Unpacks archives from the internet without trusting them."""

from __future__ import annotations

import lzma
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib

from medvlp_jax.errors import UserError

MAX_RATIO = 100
"""An archive may hold so many times its own size, and `ALWAYS_ALLOWED` besides; images hardly shrink."""

ALWAYS_ALLOWED = 1 << 30
"""Bytes that any archive may hold."""

MAX_MEMBERS = 10_000_000

_AGAIN = "Then run the same command again"

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # a kind of compression that zipfile does not know
    UnicodeDecodeError,
)


def unpack(archive: pathlib.Path) -> int:
    """Unpacks a tar, tar.gz, tar.bz2, tar.xz or zip beside itself; files that are there are replaced.

    Links are refused altogether: no dataset needs them, and each way out of a folder that was found in
    Python's `data` filter went through one.

    Args:
        archive: told apart by its content, not by its name.

    Returns:
        Number of files.

    Raises:
        UserError: damaged, no such archive, disk full, or not safe: a path that leads out of the folder, a
            link, a device, a password, or far more data than its size allows.
    """
    limit = MAX_RATIO * archive.stat().st_size + ALWAYS_ALLOWED
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, limit)
        if tarfile.is_tarfile(archive):
            return _unpack_tar(archive, limit)
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # gzip reports damage without a number, the system a full disk with one.
        if error.errno is None:
            raise _damaged(archive, error) from error
        raise UserError(
            f"{archive} could not be unpacked: {error.strerror}; free some space. {_AGAIN}"
        ) from error
    raise UserError(f"{archive} is no tar or zip archive; delete it. {_AGAIN}")


def _damaged(archive: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{archive} is damaged ({error}); delete it. {_AGAIN}")


def _unpack_zip(archive: pathlib.Path, limit: int) -> int:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        # zipfile never gives more than the size that is checked here.
        _require_size(archive, sum(m.file_size for m in members), len(members), limit)
        needed, free = sum(m.file_size for m in members), shutil.disk_usage(archive.parent).free
        if needed > free:
            raise UserError(
                f"{archive} needs {needed} bytes, {free} are free; free some space. {_AGAIN}"
            )
        targets = [_target(archive, m.filename) for m in members]
        for member in members:
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _unsafe(archive, member.filename, "is a link")
            if member.flag_bits & 1:
                raise _unsafe(archive, member.filename, "needs a password")
        count = 0
        for member, target in zip(members, targets, strict=True):
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            count += 1
    return count


def _unpack_tar(archive: pathlib.Path, limit: int) -> int:
    size = seen = count = 0
    with tarfile.open(archive) as file:
        for member in file:
            seen, size = seen + 1, size + member.size
            _require_size(archive, size, seen, limit)
            _target(archive, member.name)
            if not (member.isreg() or member.isdir()):
                raise _unsafe(archive, member.name, "is a link or a device")
            file.extract(member, archive.parent, filter="data")
            count += member.isreg()
    return count


def _target(archive: pathlib.Path, name: str) -> pathlib.Path:
    """Where a member goes.

    Raises:
        UserError: out of the folder, also through a link that lies there, or onto the archive.
    """
    path = pathlib.PureWindowsPath(name)  # knows both slashes, and drives
    if path.anchor or ".." in path.parts:
        raise _unsafe(archive, name, "leads out of the folder")
    target = archive.parent / name
    if not target.resolve().is_relative_to(archive.parent.resolve()):
        raise _unsafe(archive, name, "leads out of the folder")
    if target == archive:
        raise _unsafe(archive, name, "would replace the archive")
    return target


def _unsafe(archive: pathlib.Path, name: str, reason: str) -> UserError:
    return UserError(f"{archive} is not unpacked: its member {name!r} {reason}")


def _require_size(archive: pathlib.Path, size: int, members: int, limit: int) -> None:
    if size > limit or members > MAX_MEMBERS:
        raise UserError(
            f"{archive} is not unpacked: it holds {members} members of {size} bytes or more, far more than "
            "its size allows"
        )
