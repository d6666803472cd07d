"""Without it a damaged list would give a traceback, or a caption be cut at a Unicode line separator."""

from __future__ import annotations

import gzip

import pytest

from medvlp_jax.errors import UserError
from tfds_builders.json_lines import read_json_lines, text_of

TEXT = '\ufeff{"a": "one\u2028line", "b": null}\r\n\n{"a": 2, "b": " x \\n y "}'


def test_objects_plain_and_compressed(tmp_path) -> None:
    (tmp_path / "l.jsonl").write_text(TEXT, "utf-8", newline="")
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    for name in ("l.jsonl", "l.jsonl.gz"):
        rows = list(read_json_lines(tmp_path / name, ("a", "b")))
        assert rows == [(1, {"a": "one\u2028line", "b": None}), (3, {"a": 2, "b": " x \n y "})]
    _, last = rows[1]
    assert (text_of(last, "a"), text_of(last, "b"), text_of(last, "c")) == ("2", "x y", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2', r"line 2 is not JSON"),
        (b'{"a": "caf\xe9"}', r"line 1 is not JSON .*utf-8"),
        (b'{"a": 1}\n[1]\n', r"line 2 has no a"),
        (b'{"b": 1}', r"line 1 has no a; take the published file"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], r"is damaged"),
    ],
)
def test_damaged_lists_name_file_and_line(tmp_path, content, message) -> None:
    file = tmp_path / ("l.jsonl.gz" if content[:2] == b"\x1f\x8b" else "l.jsonl")
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"l\.jsonl.*{message}"):
        list(read_json_lines(file, ("a",)))
