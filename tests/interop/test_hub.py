"""Without these, a model named by its Hugging Face name could be fetched in part, fetched again in every run,
or fail without saying why. The hub is a server on this machine; nothing leaves it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import save

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
REPO = "someone/tiny-bert"
TENSOR = np.arange(200_000, dtype=np.float32)
FILES = {
    "config.json": json.dumps({"num_attention_heads": 2}).encode(),
    "vocab.txt": b"[PAD]\n[UNK]\nlung\n",
    "model.safetensors": save({"w": TENSOR}),
    "flax_model.msgpack": b"not wanted",
    "pytorch_model.bin": b"not wanted beside safetensors",
}


@dataclasses.dataclass
class Hub:
    """A running server and what was asked of it."""

    url: str
    requests: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    break_after: int | None = None  # bytes of a file after which the connection is cut

    def fetched(self) -> set[str]:
        return {path.rpartition("/")[2] for verb, path, _ in self.requests if verb == "GET"}


def _answer(hub: Hub, handler: http.server.BaseHTTPRequestHandler) -> None:
    path, ranged = handler.path.partition("?")[0], handler.headers.get("Range", "")
    hub.requests.append((handler.command, path, ranged))
    if path in (f"/api/models/{REPO}/tree/main", f"/api/models/{REPO}/tree/{COMMIT}"):
        rows = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in FILES.items()
        ]
        return _send(handler, json.dumps(rows).encode())
    if path == f"/api/models/{REPO}/revision/main":
        siblings = [{"rfilename": name} for name in FILES]
        return _send(
            handler, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
        )
    name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
    if name not in FILES:
        code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return _send(handler, b"{}", 404, **code)
    data = FILES[name]
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
    headers["Accept-Ranges"] = "bytes"
    start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", ranged)) else 0
    status = 206 if match else 200
    if match:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    cut = hub.break_after if handler.command == "GET" and name.endswith("safetensors") else None
    return _send(handler, data[start:], status, cut=cut, **headers)


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    data: bytes,
    status: int = 200,
    *,
    cut: int | None = None,
    **headers: str,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(data[:cut])
    handler.close_connection = cut is not None


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(hub, self)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            del args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


READ = """
import sys
from medvlp_jax.errors import UserError
from medvlp_jax.interop import weights
try:
    folder = weights.hub_folder(sys.argv[1])
    print(folder)
    print(float(weights.read(folder)["w"].sum()))
except UserError as error:
    print("UserError:", error)
"""


def read(url: str, cache: pathlib.Path, name: str = REPO) -> list[str]:
    """Lines of a fresh process (the endpoint is read at import) that reads a model by its name."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, name], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow  # the client knocks at the closed server for 20 s
def test_downloads_what_is_needed_once_and_works_offline_afterwards(tmp_path) -> None:
    with serve() as hub:
        folder, total = read(hub.url, tmp_path)
        assert float(total) == TENSOR.sum()
        names = {file.name for file in pathlib.Path(folder).iterdir()}
        assert names == {"config.json", "vocab.txt", "model.safetensors"}
        assert not hub.fetched() & {"flax_model.msgpack", "pytorch_model.bin"}
        hub.requests.clear()
        assert read(hub.url, tmp_path) == [folder, total]
        assert not hub.fetched() & set(FILES)
    assert read(hub.url, tmp_path) == [folder, total]


def test_a_download_that_broke_off_says_so_and_is_resumed(tmp_path, monkeypatch) -> None:
    large = np.arange(6_000_000, dtype=np.float32)  # the client writes pieces of 10 MB
    monkeypatch.setitem(FILES, "model.safetensors", save({"w": large}))
    with serve() as hub:
        hub.break_after = 300_000
        (message,) = read(hub.url, tmp_path)
        assert "nor available from the Hugging Face hub (peer closed connection" in message
        hub.break_after = 12_000_000
        folder, _ = read(hub.url, tmp_path)
        assert any(ranged.startswith("bytes=1") for _, _, ranged in hub.requests)
        saved = pathlib.Path(folder) / "model.safetensors"
        assert saved.read_bytes() == FILES["model.safetensors"]


@pytest.mark.slow
def test_an_unknown_name_and_a_missing_network_are_explained(tmp_path) -> None:
    with serve() as hub:
        (message,) = read(hub.url, tmp_path, "someone/nothing")
        assert "'someone/nothing' is neither a file or folder here nor available" in message
        assert "404" in message
    (message,) = read(hub.url, tmp_path)
    assert "nor available from the Hugging Face hub" in message
    assert "Connection refused" in message
    assert "give the path of a checkpoint file or folder" in message
