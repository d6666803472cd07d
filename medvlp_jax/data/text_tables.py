"""Rows of a user's table of texts: CSV, TSV or JSON lines, each row with its line number for messages."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medvlp_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
TEXT_COLUMNS = ("text", "report", "report_text", "reports", "sentence")
"""Names under which a table gives a whole text, the first one found counts."""
PART_COLUMNS = ("findings", "impression")
"""Columns that together give a text where none of `TEXT_COLUMNS` is there."""
ID_COLUMNS = ("image_id", "study_id", "report_id", "uid", "id", "filename", "path")
"""Names under which a table gives the id of a row, the first one found counts."""


class TextRow(NamedTuple):
    """One row: its line in the file and its cells, blanks stripped; null is ""."""

    line: int
    cells: dict[str, str]


def read_rows(path: str | os.PathLike[str]) -> list[TextRow]:
    """Reads a table.

    Args:
        path: .csv or .tsv with a header line, or .jsonl with one object per line; UTF-8.

    Raises:
        UserError: no such file, another suffix, not UTF-8, a broken line, no rows.
    """
    file = pathlib.Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file}: expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from error
    reader = _json_lines if file.suffix.lower() == ".jsonl" else _separated
    rows = list(reader(file, text))
    if not rows:
        raise UserError(f"{file} has no rows")
    return rows


def _json_lines(file: pathlib.Path, text: str) -> Iterator[TextRow]:
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file} line {line} is not JSON ({error}); correct the line"
            ) from error
        if not isinstance(record, dict):
            raise UserError(f'{file} line {line}: expected an object such as {{"text": "..."}}')
        yield TextRow(line, {str(k): _plain(v) for k, v in record.items()})


def _separated(file: pathlib.Path, text: str) -> Iterator[TextRow]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{file} line {reader.line_num}: {len(cells)} cells, but the header names "
                    f"{len(header)}; put texts with a comma or a line break into quotes"
                )
            yield TextRow(
                reader.line_num, {k: c.strip() for k, c in zip(header, cells, strict=True)}
            )
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num}: {error}; correct the quotes") from error


def _plain(value: object) -> str:
    return "" if value is None else str(value).strip()


def find_column(
    path: str | os.PathLike[str], rows: Sequence[TextRow], names: Sequence[str], given: str = ""
) -> str:
    """The column that holds something: the given one, else the first known name, any case.

    Returns:
        The name as the table spells it; "" when none of `names` is there.

    Raises:
        UserError: `given` is no column.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    if given:
        if given not in columns:
            raise UserError(f"{path} has no column {given!r}; it has {', '.join(columns)}")
        return given
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name] for name in names if name in lower), "")


def row_ids(
    path: str | os.PathLike[str], rows: Sequence[TextRow], id_column: str = ""
) -> list[str]:
    """The id of each row.

    Raises:
        UserError: no id column, or a row without an id.
    """
    column = find_column(path, rows, ID_COLUMNS, id_column)
    if not column:
        raise UserError(
            f"{path} has no id column; name one of its columns {', '.join(ID_COLUMNS)}, or give it"
        )
    for row in rows:
        if not row.cells.get(column):
            raise UserError(
                f"{path} line {row.line}: column {column!r} is empty; give each row an id"
            )
    return [row.cells[column] for row in rows]


def row_texts(
    path: str | os.PathLike[str], rows: Sequence[TextRow], text_column: str = ""
) -> list[str]:
    """The text of each row; findings and impression are joined as paragraphs. May be "".

    Raises:
        UserError: no text column.
    """
    column = find_column(path, rows, TEXT_COLUMNS, text_column)
    if column:
        return [row.cells.get(column, "") for row in rows]
    parts = [c for c in (find_column(path, rows, (part,)) for part in PART_COLUMNS) if c]
    if not parts:
        raise UserError(
            f"{path} has no text column; name one of its columns {', '.join(TEXT_COLUMNS)}, or have "
            f"{' and '.join(PART_COLUMNS)}, or give the name"
        )
    return ["\n\n".join(t for t in (r.cells.get(p, "") for p in parts) if t) for r in rows]
