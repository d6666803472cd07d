"""Public files of a dataset, fetched where no account is needed.

Neither pooch nor TFDS's DownloadManager goes on with a file that was cut off, and 45 GB seldom come in one
piece; so the transfer is ours. What was received is recorded in TFDS's own form, `checksums.tsv` (url, size,
SHA-256, file name), through TFDS's own functions: its lines can be copied into a builder's package.
"""

from __future__ import annotations

import dataclasses
import email.message
import errno
import hashlib
import http.client
import json
import pathlib
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from etils import epath
from tensorflow_datasets.core.download import checksums
from tqdm import tqdm

from medvlp_jax.errors import UserError
from tfds_builders.unpacking import unpack

RECORD = "checksums.tsv"
"""What was fetched: url, size in bytes, SHA-256, file."""

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_AGAIN = "Then run the same command again"
_LATER = (408, 425, 429, 500, 502, 503, 504)  # worth another attempt


@dataclasses.dataclass(frozen=True)
class Download:
    """One public file.

    Attributes:
        url: its address.
        path: where the layout expects it, relative to the dataset's folder.
        checksum: `"md5:HEX"` or `"sha256:HEX"` as published; "" where none is.
        size: in bytes as published; 0 where unknown.
        unpack: whether it is an archive (tar, tar.gz, zip) that is unpacked beside itself.
    """

    url: str
    path: str
    checksum: str = ""
    size: int = 0
    unpack: bool = False


class _InterruptedError(Exception):
    """The transfer stopped; another attempt may go on."""


def fetch(
    downloads: Iterable[Download],
    folder: pathlib.Path,
    *,
    access: str = "",
    attempts: int = 5,
    pause: float = 2.0,
) -> None:
    """Fetches and unpacks what is not there yet; a file that was cut off goes on where it stopped.

    A file that is there is only compared with its checksum: the published one, else that of its first
    fetch. An archive may be deleted once it is unpacked.

    Args:
        downloads: the files.
        folder: where they go.
        access: how to get them by hand, for messages.
        attempts: without a single new byte before it gives up.
        pause: seconds before the second attempt; doubled each time.

    Raises:
        UserError: not found, a web page in place of the file, damaged, other than published or than before,
            no network, disk full, or an archive that is not safe to unpack.
    """
    folder.mkdir(parents=True, exist_ok=True)
    downloads = list(downloads)
    for number, download in enumerate(downloads, 1):
        file = _place(folder, download)
        marker = file.with_name(f".{file.name}.unpacked")
        if download.unpack and marker.exists() and not file.exists():
            continue
        recorded = _load_record(folder).get(download.url)
        if file.exists():
            info = _verified(file, download, recorded)
        else:
            print(
                f"fetching {number}/{len(downloads)} {download.path} from {download.url}",
                flush=True,
            )
            try:
                info = _fetch(download, file, recorded, access, attempts, pause)
            except OSError as error:
                raise _not_written(file, error) from error
        checksums.save_url_infos(epath.Path(folder / RECORD), {download.url: info})
        if download.unpack and not (marker.exists() and marker.read_text() == info.checksum):
            print(f"unpacking {file}", flush=True)
            unpack(file)
            marker.write_text(info.checksum)


def _place(folder: pathlib.Path, download: Download) -> pathlib.Path:
    """Path of the file, which must lie in the folder."""
    file = folder / download.path
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{download.url}: its place {download.path} is outside {folder}")
    return file


def _load_record(folder: pathlib.Path) -> dict[str, checksums.UrlInfo]:
    file = epath.Path(folder / RECORD)
    try:
        return checksums.load_url_infos(file) if file.exists() else {}
    except (AssertionError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it. {_AGAIN}") from error


def _fetch(
    download: Download,
    file: pathlib.Path,
    recorded: checksums.UrlInfo | None,
    access: str,
    attempts: int,
    pause: float,
) -> checksums.UrlInfo:
    """Fetches one file until it is whole, and gives it its name when it is the right one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    resumed = _size(part) > 0
    while True:
        _receive_all(download, part, access, attempts, pause)
        try:
            info = _verified(part, download, recorded)
            break
        except UserError:
            _forget(part)
            # A part of long ago may belong to another version of the file; a whole one does not.
            if not resumed:
                raise
            resumed = False
    part.rename(file)
    _forget(part)
    return info


def _receive_all(
    download: Download, part: pathlib.Path, access: str, attempts: int, pause: float
) -> None:
    """Receives the file in as many pieces as it takes."""
    failed = 0
    while True:
        before = _size(part)
        try:
            return _receive(download, part, access)
        except _InterruptedError as error:
            failed = 1 if _size(part) > before else failed + 1
            if failed >= attempts:
                raise UserError(
                    f"{download.url} could not be fetched: {error} (tried {attempts} times). Run the same "
                    f"command again: it goes on after the {_size(part)} bytes that are there"
                ) from error
            time.sleep(pause * 2 ** (failed - 1))


def _receive(download: Download, part: pathlib.Path, access: str) -> None:
    """One request: the whole file, or what is missing of it.

    Raises:
        _InterruptedError: worth another attempt.
        UserError: not worth one.
        OSError: from the disk.
    """
    validator = _load_validator(part, download)  # first: it may remove the part
    start = _size(part)
    headers = {"User-Agent": "medvlp_jax", "Accept-Encoding": "identity"}
    # Pieces of two versions must not be joined: the server compares the version, or the checksum tells.
    if start and (validator or download.checksum):
        headers["Range"] = f"bytes={start}-"
        headers.update({"If-Range": validator} if validator else {})
    try:
        response: Any = urllib.request.urlopen(
            urllib.request.Request(download.url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{start}":
            return  # it was whole already
        _refused(download, error.code, part, access)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{download.url}: its certificate is not valid ({reason})") from error
        raise _InterruptedError(str(reason)) from error
    else:
        with response:
            _require_file(download, response.headers, access)
            if response.status != 206:
                start = 0  # the server ignores ranges, or has another version now
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                _forget(part)
                raise _InterruptedError("the server sent another range than asked for")
            _save_validator(part, download, response.headers)
            _write(response, part, start, download.path)


def _write(response: Any, part: pathlib.Path, start: int, name: str) -> None:
    """Appends what the server sends, with a progress line on a terminal."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"needs {total - start} bytes, {free} are free")
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None)
    with part.open("ab" if start else "wb") as file, bar:
        while True:
            try:
                block = response.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(f"the connection broke ({error!r})") from error
            if not block:
                break
            file.write(block)
            bar.update(len(block))
    if total is not None and _size(part) != total:
        raise _InterruptedError(f"the connection ended after {_size(part)} of {total} bytes")


def _refused(download: Download, code: int, part: pathlib.Path, access: str) -> None:
    """Turns a status of the server into the right error."""
    if code == 416:  # the part is longer than the file
        _forget(part)
    if code == 416 or code in _LATER:
        raise _InterruptedError(f"the server answered {code}")
    reason = {404: "is not there any more", 410: "is not there any more"}.get(code)
    reason = reason or ("needs an account" if code in (401, 403) else "was refused by the server")
    raise UserError(f"{download.url} {reason} (status {code}); {_by_hand(download, access)}")


def _require_file(download: Download, headers: email.message.Message, access: str) -> None:
    """Refuses a login or error page in place of the file."""
    page = headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if page and pathlib.PurePosixPath(download.path).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"{download.url} gave a web page, e.g. for a login, in place of {download.path}; "
            f"{_by_hand(download, access)}"
        )


def _by_hand(download: Download, access: str) -> str:
    where = f" ({access})" if access else ""
    return f"fetch {download.path} by hand{where} and give its folder as --manual-dir"


def _verified(
    file: pathlib.Path, download: Download, recorded: checksums.UrlInfo | None
) -> checksums.UrlInfo:
    """Size and SHA-256 of a file.

    Raises:
        UserError: it is not the published file, or not the one of the first fetch.
    """
    size = file.stat().st_size
    name = file.with_name(file.name.removesuffix(".part"))
    if download.size and size != download.size:
        raise UserError(f"{name} has {size} bytes, published: {download.size}; delete it. {_AGAIN}")
    kind, _, published = download.checksum.partition(":")
    digests = {name: hashlib.new(name) for name in {"sha256", kind or "sha256"}}
    with file.open("rb") as data:
        while block := data.read(_BLOCK):
            for digest in digests.values():
                digest.update(block)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    if published and found[kind] != published.lower():
        raise UserError(
            f"{name} is damaged: {kind} is {found[kind]}, published: {published}; delete it. {_AGAIN}"
        )
    if recorded and not published and recorded.checksum != found["sha256"]:
        raise UserError(
            f"{name} is another file than the one first fetched from {download.url} (sha256 was "
            f"{recorded.checksum}, is {found['sha256']}): it is damaged, or its owner has changed it. Delete "
            f"it; to accept a new one delete its line in {RECORD} too. {_AGAIN}"
        )
    return checksums.UrlInfo(size, found["sha256"], download.path)  # pyright: ignore[reportArgumentType]


def _not_written(file: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{file} could not be written: {error.strerror or error}; free some space or give --data-dir another "
        f"disk. {_AGAIN}: it goes on where it stopped"
    )


def _size(part: pathlib.Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_file(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + ".json")


def _save_validator(part: pathlib.Path, download: Download, headers: email.message.Message) -> None:
    """Notes the version that is being received: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    _validator_file(part).write_text(json.dumps({"url": download.url, "version": version}))


def _load_validator(part: pathlib.Path, download: Download) -> str:
    """The version of the part; "" where unknown. A part of another address is removed."""
    try:
        noted = json.loads(_validator_file(part).read_text())
        if noted["url"] == download.url:
            return noted["version"]
        _forget(part)
    except (OSError, ValueError, KeyError):
        pass  # no note, or a damaged one: the version is unknown
    return ""


def _forget(part: pathlib.Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)
