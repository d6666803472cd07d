"""Reading the table of a folder: which file, which columns, which rows are usable."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from medvlp_jax.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".tsv")
_PREFERRED = ("metadata", "data", "index", "reports", "captions")

# Column names that users and published tables give to each field, in order of preference.
ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "path", "file", "filename", "file_name", "filepath", "img",
              "image_file", "dicom", "dicom_path"),
    "text": ("text", "report", "caption", "report_text", "note", "notes", "clinical_notes", "description"),
    "findings": ("findings",),
    "impression": ("impression", "impressions", "conclusion"),
    "subject_id": ("subject_id", "patient_id", "patientid", "patient", "subject", "pid"),
    "study_id": ("study_id", "studyid", "study", "exam_id", "accession"),
    "label": ("label", "labels", "finding", "diagnosis", "class", "keywords", "tags"),
    "split": ("split", "fold", "subset", "partition"),
    "view_position": ("view_position", "view", "viewposition", "projection"),
    "sex": ("sex", "gender"),
    "age": ("age", "patient_age"),
}  # fmt: skip

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "validate": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_MISSING_LABELS = {"", "todo", "unknown", "n/a", "na", "none", "nan", "null", "-"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        number: line in the file, counted from 1 (the header of a CSV is line 1).
        image: path relative to the folder.
        text, findings, impression: texts, "" where there is none.
        subject_id, study_id: "" where unknown.
        labels: names of the labels that are present; None = not labelled.
        split: train, validation, test or "" where the table has none.
        view_position, sex, age: "" or NaN where unknown.
    """

    number: int
    image: str
    text: str = ""
    findings: str = ""
    impression: str = ""
    subject_id: str = ""
    study_id: str = ""
    labels: tuple[str, ...] | None = None
    split: str = ""
    view_position: str = ""
    sex: str = ""
    age: float = math.nan


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a folder's table and how they were read.

    Attributes:
        file: the table.
        columns: field -> column it was read from.
        rows: all rows, also those without a text.
    """

    file: pathlib.Path
    columns: dict[str, str]
    rows: tuple[Row, ...]


def find_table(folder: pathlib.Path, name: str = "") -> pathlib.Path:
    """The table of a folder: the named one, `metadata.jsonl`/`.csv`/`.tsv`, or the only one.

    Raises:
        UserError: no folder, no table, or several to choose from.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give --manual-dir the folder with images and table"
        )
    if name:
        file = folder / name
        if not file.is_file():
            raise UserError(f"table {file} does not exist; leave the option out to look for one")
        return file
    found = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    if not found:
        raise UserError(
            f"{folder} holds no table: add metadata.csv or metadata.jsonl with an image column and a "
            "text column (README of image_text_folder)"
        )
    for stem in _PREFERRED:
        named = [f for f in found if f.stem.lower() == stem]
        if named:
            return named[0]
    if len(found) > 1:
        names = ", ".join(f.name for f in found)
        raise UserError(f"{folder} holds several tables ({names}); choose one: --option table=NAME")
    return found[0]


def read_table(file: pathlib.Path, columns: Mapping[str, str] | None = None) -> Table:
    """Reads a table and finds its columns.

    Args:
        file: .csv, .tsv or .jsonl, UTF-8.
        columns: field -> column name, where the names are not among `ALIASES`.

    Raises:
        UserError: unreadable line, missing image or text column, unknown column named.
    """
    records = _read_jsonl(file) if file.suffix.lower() == ".jsonl" else _read_csv(file)
    if not records:
        raise UserError(f"{file} has no rows")
    names = list(dict.fromkeys(key for _, record in records for key in record))
    chosen = _choose_columns(file, names, dict(columns or {}))
    rows = tuple(_row(file, number, record, chosen) for number, record in records)
    return Table(file=file, columns=chosen, rows=rows)


def _read_jsonl(file: pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file} line {number} is not JSON ({error.msg}); correct or remove it"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{file} line {number} is not an object {{...}}: one example per line")
        records.append((number, record))
    return records


def _read_csv(file: pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    text = _text(file)
    tab = file.suffix.lower() == ".tsv"
    delimiter = (
        "\t"
        if tab
        else ";"
        if text.split("\n", 1)[0].count(";") > text.split("\n", 1)[0].count(",")
        else ","
    )
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    records = []
    try:
        for record in reader:
            if None in record:
                raise UserError(
                    f"{file} line {reader.line_num} has more fields than the header: quote texts that "
                    f"hold the delimiter {delimiter!r}"
                )
            records.append((reader.line_num, {k: v for k, v in record.items() if k is not None}))
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num}: {error}") from None
    return records


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8"
        ) from None


def _choose_columns(file: pathlib.Path, names: list[str], given: dict[str, str]) -> dict[str, str]:
    """Field -> column name."""
    lower = {re.sub(r"[^a-z0-9]+", "_", n.strip().lower()).strip("_"): n for n in reversed(names)}
    chosen: dict[str, str] = {}
    for field, column in given.items():
        if field not in ALIASES or column not in names:
            near = difflib.get_close_matches(column, names, n=3)
            raise UserError(
                f"option {field}_column={column!r}: {file.name} has the columns {', '.join(names)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        chosen[field] = column
    for field, aliases in ALIASES.items():
        hit = next(
            (lower[a] for a in aliases if a in lower and lower[a] not in chosen.values()), None
        )
        if field not in chosen and hit is not None:
            chosen[field] = hit
    if "image" not in chosen:
        raise UserError(
            f"{file} has no image column (it has {', '.join(names)}); name it 'image' or give "
            "--option image_column=NAME"
        )
    if not {"text", "findings", "impression"} & set(chosen):
        raise UserError(
            f"{file} has no text column (it has {', '.join(names)}); name it 'text' or give "
            "--option text_column=NAME"
        )
    return chosen


def _row(
    file: pathlib.Path, number: int, record: Mapping[str, Any], columns: Mapping[str, str]
) -> Row:
    def value(field: str) -> str:
        raw = record.get(columns.get(field, ""), "")
        return "" if raw is None else str(raw).strip()

    image = value("image")
    if not image:
        raise UserError(f"{file} line {number}: the image column {columns['image']!r} is empty")
    split = value("split").lower()
    if split and split not in _SPLIT_NAMES:
        raise UserError(
            f"{file} line {number}: split {split!r} is unknown; use train, validation or test"
        )
    findings, impression = value("findings"), value("impression")
    text = value("text") or "\n".join(
        f"{name}: {part}"
        for name, part in (("FINDINGS", findings), ("IMPRESSION", impression))
        if part
    )
    try:
        age = float(value("age")) if value("age") else math.nan
    except ValueError:
        age = math.nan
    return Row(
        number=number,
        image=image,
        text=text,
        findings=findings,
        impression=impression,
        subject_id=value("subject_id"),
        study_id=value("study_id"),
        labels=_labels(record.get(columns["label"])) if "label" in columns else None,
        split=_SPLIT_NAMES.get(split, ""),
        view_position=value("view_position"),
        sex=value("sex"),
        age=age,
    )


def _labels(raw: Any) -> tuple[str, ...] | None:
    """Label names of one cell: a list, or text separated by / , ; |. None = not labelled."""
    parts = raw if isinstance(raw, list) else re.split(r"[/,;|]", "" if raw is None else str(raw))
    named = tuple(dict.fromkeys(str(p).strip() for p in parts))
    known = tuple(n for n in named if n.lower() not in _MISSING_LABELS)
    return known or None


def label_names(rows: tuple[Row, ...], *, minimum: int, most: int) -> tuple[str, ...]:
    """Labels that at least `minimum` rows have, the most frequent first, at most `most`."""
    counts = Counter(name for row in rows for name in row.labels or ())
    frequent = [
        n for n, c in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if c >= minimum
    ]
    return tuple(frequent[:most])
