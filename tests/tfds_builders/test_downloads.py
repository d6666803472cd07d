"""Without these, a broken connection would cost 40 GB again, or a login page would pass as a dataset."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.server
import io
import pathlib
import shutil
import tarfile
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from medvlp_jax.data import build
from medvlp_jax.data.source import open_source
from medvlp_jax.errors import UserError
from tfds_builders import downloads
from tfds_builders.downloads import Download, fetch
from tfds_builders.nih_cxr14.nih_cxr14 import NihCxr14

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


@dataclasses.dataclass
class Site:
    """What the server sends, and the requests it got."""

    url: str = ""
    data: bytes = DATA
    tag: str = '"v1"'
    ranges: bool = True
    cut: int = 0  # bytes after which the connection breaks; 0 = never
    cuts_left: int = 0
    status: int = 200
    failures_left: int = 0  # answers with `status` before it gives the file
    kind: str = "application/octet-stream"
    asked: list[str] = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range", "")
        if self.path != "/file":
            self.send_response(302)
            self.send_header("Location", site.url)
            return self.end_headers()
        site.asked.append(wanted)
        if site.failures_left:
            site.failures_left -= 1
            return self.send_error(site.status)
        same = self.headers.get("If-Range", site.tag) == site.tag
        start = int(wanted[6:-1]) if wanted and site.ranges and same else 0
        if start >= len(site.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.data)}")
            return self.end_headers()
        body = site.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", site.kind)
        self.send_header("Content-Length", str(len(body)))
        if site.tag:
            self.send_header("ETag", site.tag)
        if start:
            end = len(site.data)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.end_headers()
        if site.cuts_left:
            site.cuts_left -= 1
            body = body[: site.cut]
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/file"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def get(site: Site, folder: pathlib.Path, path: str = "sub/file.bin", **fields) -> bytes:
    fetch([Download(site.url, path, **fields)], folder, access="ask them", attempts=3, pause=0.0)
    return (folder / path).read_bytes()


def leftovers(folder: pathlib.Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.part*"))


@pytest.mark.parametrize("checksum", ["", f"md5:{MD5}", f"sha256:{SHA256.upper()}"])
def test_a_finished_file_is_never_fetched_again(tmp_path, site, checksum) -> None:
    for _ in range(2):
        assert get(site, tmp_path, checksum=checksum, size=len(DATA)) == DATA
    assert site.asked == [""]
    assert leftovers(tmp_path) == []
    record = (tmp_path / "checksums.tsv").read_text()
    assert record == f"{site.url}\t{len(DATA)}\t{SHA256}\tsub/file.bin\n"


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path, site) -> None:
    site.cut, site.cuts_left = 70_000, 3
    assert get(site, tmp_path) == DATA
    assert site.asked == ["", "bytes=70000-", "bytes=140000-", "bytes=210000-"]
    assert leftovers(tmp_path) == []


def test_ranges_are_kept_through_a_redirection(tmp_path, site) -> None:
    site.cut, site.cuts_left = 70_000, 1
    download = Download(site.url.replace("/file", "/records/1/file?download=1"), "x")
    fetch([download], tmp_path, pause=0.0)
    assert (tmp_path / "x").read_bytes() == DATA
    assert site.asked == ["", "bytes=70000-"]


def test_a_stopped_build_goes_on_the_next_day(tmp_path, site) -> None:
    site.cut, site.cuts_left = 70_000, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.time, "sleep", lambda s: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(site, tmp_path)
    assert leftovers(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    assert get(site, tmp_path) == DATA
    assert site.asked == ["", "bytes=70000-"]


def test_a_server_without_ranges_starts_again(tmp_path, site) -> None:
    site.ranges, site.cut, site.cuts_left = False, 200_000, 2
    assert get(site, tmp_path) == DATA
    assert site.asked == ["", "bytes=200000-", "bytes=200000-"]


def test_pieces_of_two_versions_are_not_joined(tmp_path, site) -> None:
    site.cut, site.cuts_left = 100_000, 1
    new = bytes(reversed(DATA))

    def renew(seconds: float) -> None:
        site.data, site.tag = new, '"v2"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.time, "sleep", renew)
        assert get(site, tmp_path) == new
    assert site.asked == ["", "bytes=100000-"]


def test_without_a_version_only_a_checksum_allows_to_go_on(tmp_path, site) -> None:
    site.tag, site.cut, site.cuts_left = "", 100_000, 1
    assert get(site, tmp_path / "a") == DATA
    assert site.asked == ["", ""]
    site.asked.clear()
    site.cuts_left = 1
    assert get(site, tmp_path / "b", checksum=f"md5:{MD5}") == DATA
    assert site.asked == ["", "bytes=100000-"]


@pytest.mark.parametrize(("extra", "requests"), [(b"", 1), (b"zzz", 2)])
def test_a_part_that_is_whole_or_too_long(tmp_path, site, extra, requests) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA + extra)
    assert get(site, tmp_path, "file.bin", checksum=f"sha256:{SHA256}") == DATA
    assert len(site.asked) == requests


def test_a_damaged_part_is_fetched_anew_once(tmp_path, site) -> None:
    (tmp_path / "file.bin.part").write_bytes(bytes(1000))
    assert get(site, tmp_path, "file.bin", checksum=f"md5:{MD5}") == DATA
    assert site.asked == ["bytes=1000-", ""]


def test_a_busy_server_is_asked_again_and_a_dead_one_given_up(tmp_path, site) -> None:
    site.status, site.failures_left = 503, 2
    assert get(site, tmp_path) == DATA
    site.failures_left = 9
    with pytest.raises(
        UserError, match=r"the server answered 503 \(tried 3 times\)\. Run the same"
    ):
        get(site, tmp_path, "other")
    site.cut, site.cuts_left, site.failures_left = 0, 9, 0
    with pytest.raises(UserError, match=r"ended after 0 of 300000 bytes"):
        get(site, tmp_path, "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"is not there any more \(status 404\); fetch x by hand \(ask them\) and give"),
        (403, r"needs an account \(status 403\)"),
        (400, "was refused by the server"),
    ],
)
def test_final_answers_are_not_asked_again(tmp_path, site, status, message) -> None:
    site.status, site.failures_left = status, 9
    with pytest.raises(UserError, match=message):
        get(site, tmp_path, "x")
    assert len(site.asked) == 1


def test_no_server_at_all(tmp_path, site) -> None:
    download = Download("http://127.0.0.1:9/x", "x")
    with pytest.raises(UserError, match=r"refused.*tried 2 times"):
        fetch([download], tmp_path, attempts=2, pause=0.0)


def test_a_login_page_is_not_a_dataset(tmp_path, site) -> None:
    site.data, site.kind = b"<html>Please log in</html>", "text/html; charset=utf-8"
    with pytest.raises(UserError, match=r"gave a web page, e\.g\. for a login, in place of a\.tar"):
        get(site, tmp_path, "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert get(site, tmp_path, "terms.html") == site.data


def test_published_sizes_and_checksums_are_compared(tmp_path, site) -> None:
    with pytest.raises(UserError, match=r"has 300000 bytes, published: 5; delete it"):
        get(site, tmp_path, size=5)
    with pytest.raises(UserError, match=rf"is damaged: md5 is {MD5}, published: 0+"):
        get(site, tmp_path, checksum="md5:" + "0" * 32)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "checksums.tsv").exists()


def test_later_change_is_seen_where_no_checksum_is_published(tmp_path, site) -> None:
    get(site, tmp_path, "x")
    (tmp_path / "x").write_bytes(DATA[:-1])
    with pytest.raises(UserError, match=r"x is another file than the one first fetched"):
        get(site, tmp_path, "x")
    (tmp_path / "x").unlink()
    site.data = bytes(reversed(DATA))
    with pytest.raises(UserError, match=r"its owner has changed it.*delete its line in checksums"):
        get(site, tmp_path, "x")
    (tmp_path / "checksums.tsv").unlink()
    assert get(site, tmp_path, "x") == site.data
    (tmp_path / "checksums.tsv").write_text("nothing\n")
    with pytest.raises(UserError, match=r"checksums\.tsv is damaged"):
        get(site, tmp_path, "x")


def test_full_disk_keeps_what_was_received(tmp_path, site, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})()
    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "disk_usage", lambda p: usage)
        with pytest.raises(UserError, match=r"needs 300000 bytes, 1000 are free; free some space"):
            get(site, tmp_path)
    site.cut, site.cuts_left = 70_000, 1
    with monkeypatch.context() as patch:

        def full(seconds: float) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(downloads.time, "sleep", full)
        with pytest.raises(UserError, match=r"No space left on device; free .* where it stopped"):
            get(site, tmp_path)
    assert get(site, tmp_path) == DATA
    assert site.asked == ["", "", "bytes=70000-"]


def test_archives_are_unpacked_once_and_may_be_deleted(tmp_path, site, monkeypatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("images/a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    site.data = buffer.getvalue()
    real, calls = downloads.unpack, []
    monkeypatch.setattr(downloads, "unpack", lambda file: calls.append(file) or real(file))
    for _ in range(2):
        get(site, tmp_path, "sub/a.tar.gz", unpack=True)
    assert (tmp_path / "sub" / "images" / "a.png").read_bytes() == b"abc"
    (tmp_path / "sub" / "a.tar.gz").unlink()
    fetch([Download(site.url, "sub/a.tar.gz", unpack=True)], tmp_path)
    assert (len(calls), len(site.asked)) == (1, 1)
    assert not (tmp_path / "sub" / "a.tar.gz").exists()


@pytest.fixture
def nih_site(site, tmp_path, save_nih, monkeypatch) -> Site:
    """A server with ChestX-ray14 as one archive of dummy files."""
    folder = tmp_path / "nih"
    save_nih(folder, 20)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=".")
    site.data = buffer.getvalue()
    wanted = (Download(site.url, "all.tar.gz", unpack=True),)
    monkeypatch.setattr(NihCxr14, "DOWNLOADS", wanted)
    return site


def test_build_fetches_public_files(nih_site, tmp_path, capsys) -> None:
    nih_site.cut, nih_site.cuts_left = 4000, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.time, "sleep", lambda seconds: None)
        path = build.build_dataset("nih_cxr14/random", tmp_path / "out")
    assert len(open_source("nih_cxr14/random", "train", tmp_path / "out")) > 8
    assert (path.parents[1].name, path.parent.name) == ("nih_cxr14", "random")
    assert nih_site.asked == ["", "bytes=4000-"]
    printed = capsys.readouterr().out
    assert "fetching 1/1 all.tar.gz from http" in printed
    build.build_dataset("nih_cxr14", tmp_path / "out")  # another config takes the same files
    assert len(nih_site.asked) == 2
    shutil.rmtree(tmp_path / "out" / "downloads")
    build.build_dataset("nih_cxr14", tmp_path / "out")  # built: nothing is needed any more
    assert len(nih_site.asked) == 2
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match="options differ: size"):
        build.build_dataset("nih_cxr14", tmp_path / "out", options={"size": "64"})


def test_what_cannot_be_fetched_is_asked_for(tmp_path) -> None:
    for name in ("mimic_cxr", "image_text_folder"):
        with pytest.raises(
            UserError, match=rf"{name} needs your files: give --manual-dir FOLDER\."
        ):
            build.build_dataset(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_builds_do_not_fetch_at_once(nih_site, tmp_path) -> None:
    lock = tmp_path / "out" / "downloads" / ".nih_cxr14.fetching"
    with (
        build._locked(lock, "this test"),
        pytest.raises(UserError, match=r"another process is fetching .*nih_cxr14; wait"),
    ):
        build.build_dataset("nih_cxr14", tmp_path / "out")
    assert nih_site.asked == []


def test_places_outside_the_folder_are_refused(tmp_path, site) -> None:
    for path in ("../x", "/x"):
        with pytest.raises(UserError, match="is outside"):
            fetch([Download(site.url, path)], tmp_path / "inner")
