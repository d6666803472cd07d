"""Published tables (CSV, tab-separated, plain or gzip): rows with named columns and messages with lines."""

from __future__ import annotations

import csv
import gzip
import pathlib
from collections.abc import Iterator, Sequence

from medvlp_jax.errors import UserError


def read_rows(
    file: pathlib.Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a header, one at a time.

    Args:
        file: UTF-8, plain or `.gz`.
        columns: columns that must be there; others are handed out as well.
        delimiter: between cells.

    Yields:
        Line number and column -> cell, blanks stripped from both.

    Raises:
        UserError: not UTF-8, damaged, without one of the columns, or with a row of another length.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(
                    f"{file} has no column {', '.join(missing)} (it has {', '.join(header) or 'none'}); "
                    "take the published file unchanged"
                )
            for cells in reader:
                if not cells:
                    continue
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()  # a comma at the end of the line
                if len(cells) != len(header):
                    raise UserError(
                        f"{file} line {reader.line_num} has {len(cells)} cells, its header has "
                        f"{len(header)}; take the published file unchanged"
                    )
                yield reader.line_num, dict(zip(header, (c.strip() for c in cells), strict=True))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 (byte {error.start}); download it again"
            ) from None
        except (csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise UserError(
                f"{file} is damaged near line {reader.line_num} ({error}); download it again"
            ) from None


def read_lines(file: pathlib.Path) -> list[str]:
    """Lines of a list of names, without blank ones.

    Raises:
        UserError: not UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}); download it again") from None


def number(text: str, *, file: pathlib.Path, line: int, column: str) -> float:
    """A cell as a number.

    Raises:
        UserError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{file} line {line}: {column} is {text!r}, expected a number") from None


def read_tagged_lines(file: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Lines of a list without header: an id, and cells after tabs, of which blank ones are left out.

    Raises:
        UserError: not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            for line in lines:
                name, *cells = line.strip("\r\n").split("\t")
                if name.strip():
                    yield name.strip(), [cell.strip() for cell in cells if cell.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}); download it again") from None
