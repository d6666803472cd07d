"""Published JSONL files: one object per line, read one at a time, with messages that name the line."""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from medvlp_jax.errors import UserError


def read_json_lines(
    file: pathlib.Path, keys: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file.

    Args:
        file: UTF-8, plain or `.gz`.
        keys: keys that each object must have.

    Yields:
        Line number and object.

    Raises:
        UserError: damaged, not UTF-8, a line that is no JSON object, or an object without one of the keys.
    """
    try:
        yield from _read(file, keys)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}); download it again") from None


def _read(file: pathlib.Path, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as lines:
        # As bytes: text files also end lines at separators that are allowed inside a JSON text.
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise UserError(
                    f"{file} line {number} is not JSON ({error}); download it again"
                ) from None
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise UserError(
                    f"{file} line {number} has no {', '.join(missing)}; take the published file "
                    "unchanged"
                )
            yield number, entry


def text_of(entry: dict[str, Any], key: str) -> str:
    """A value as one line of text; "" where it is missing or null."""
    value = entry.get(key)
    return "" if value is None else " ".join(str(value).split())
