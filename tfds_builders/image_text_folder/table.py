"""Reading the table of a folder: which file, which columns, which rows are usable."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medvlp_jax.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".tsv")
_PREFERRED = ("metadata", "data", "index", "reports", "captions")

# Column names that users and published tables give to each field, in order of preference. Figures of one
# article belong together as images of one patient do.
ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "path", "file", "filename", "file_name", "filepath", "img",
              "image_file", "dicom", "dicom_path", "volume", "volume_path", "nifti", "series"),
    "text": ("text", "report", "caption", "report_text", "note", "notes", "clinical_notes", "description"),
    "findings": ("findings",),
    "impression": ("impression", "impressions", "conclusion"),
    "subject_id": ("subject_id", "patient_id", "patientid", "patient", "subject", "pid",
                   "article", "article_id", "pmcid", "pmc_id"),
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
_LABEL_VALUES = {
    "1": 1, "1.0": 1, "true": 1, "yes": 1, "positive": 1, "present": 1,
    "0": 0, "0.0": 0, "false": 0, "no": 0, "negative": 0, "absent": 0,
    "-1": -1, "-1.0": -1, "uncertain": -1,
}  # fmt: skip

# Columns of CheXpert, MIMIC-CXR and VinDr tables that hold one finding each.
FINDING_COLUMNS = frozenset(
    {
        "no finding", "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "lung lesion",
        "edema", "consolidation", "pneumonia", "atelectasis", "pneumothorax", "pleural effusion",
        "pleural other", "fracture", "support devices", "nodule", "mass", "infiltration", "emphysema",
        "fibrosis", "pleural thickening", "hernia", "effusion",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        number: line in the file, counted from 1 (the header of a CSV is line 1).
        image: path relative to the folder.
        text, findings, impression: texts, "" where there is none.
        subject_id, study_id: "" where unknown.
        labels: label name -> 1 present, 0 absent, -1 uncertain; None = not labelled.
        unnamed: value of the labels that `labels` leaves out: 0 where a cell lists what is present, -2
            (unknown) where each label has a column of its own.
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
    labels: Mapping[str, int] | None = None
    unnamed: int = 0
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
        label_columns: columns that hold one label each; empty when one column names the labels.
        rows: all rows, also those without a text.
    """

    file: pathlib.Path
    columns: dict[str, str]
    label_columns: tuple[str, ...]
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


def read_table(
    file: pathlib.Path,
    columns: Mapping[str, str] | None = None,
    label_columns: Sequence[str] = (),
) -> Table:
    """Reads a table and finds its columns.

    Args:
        file: .csv, .tsv or .jsonl, UTF-8.
        columns: field -> column name, where the names are not among `ALIASES`; "" leaves a field out.
        label_columns: columns that hold one label each (1, 0, -1 = uncertain, blank = unknown); when
            empty, the columns named like findings of CheXpert are taken, if there are several.

    Raises:
        UserError: unreadable line, missing image or text column, unknown column named, wrong value.
    """
    records = _read_jsonl(file) if file.suffix.lower() == ".jsonl" else _read_csv(file)
    if not records:
        raise UserError(f"{file} has no rows")
    names = list(dict.fromkeys(key for _, record in records for key in record))
    # A column of objects ({"Effusion": true, ...}) holds labels, whatever its name.
    objects = [n for n in names if any(isinstance(r.get(n), dict) for _, r in records)]
    chosen = _choose_columns(file, names, objects, dict(columns or {}))
    singles = _choose_label_columns(file, names, chosen, label_columns)
    rows = tuple(_row(file, number, record, chosen, singles) for number, record in records)
    return Table(file=file, columns=chosen, label_columns=singles, rows=rows)


def _read_jsonl(file: pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    # Not splitlines(): it also cuts at the line separators that Unicode allows inside a JSON text.
    for number, line in enumerate(_text(file).split("\n"), start=1):
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
    header = text.split("\n", 1)[0]
    if file.suffix.lower() == ".tsv":
        delimiter = "\t"
    else:
        delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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


def _choose_columns(
    file: pathlib.Path, names: list[str], objects: list[str], given: dict[str, str]
) -> dict[str, str]:
    """Field -> column name."""
    lower = {_key(n): n for n in reversed(names)}
    chosen: dict[str, str] = {}
    for field, column in given.items():
        if field not in ALIASES:
            raise UserError(
                f"option {field}_column is unknown; fields are {', '.join(sorted(ALIASES))}"
            )
        if column and column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            raise UserError(
                f"option {field}_column={column!r}: {file.name} has the columns {', '.join(names)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        chosen[field] = column
    for field, aliases in ALIASES.items():
        hits = (lower[a] for a in aliases if a in lower and lower[a] not in objects)
        hit = next((name for name in hits if name not in chosen.values()), None)
        if field not in chosen and hit is not None:
            chosen[field] = hit
    if objects and "label" not in chosen:
        chosen["label"] = objects[0]
    chosen = {field: column for field, column in chosen.items() if column}
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


def _key(column: str) -> str:
    """Column name in the form of `ALIASES`."""
    return re.sub(r"[^a-z0-9]+", "_", column.strip().lower()).strip("_")


def _choose_label_columns(
    file: pathlib.Path, names: list[str], chosen: Mapping[str, str], given: Sequence[str]
) -> tuple[str, ...]:
    """Columns that hold one label each."""
    missing = [name for name in given if name not in names]
    if missing:
        raise UserError(
            f"option label_columns: {file.name} has no column {missing[0]!r} (it has "
            f"{', '.join(names)})"
        )
    if given or "label" in chosen:
        return tuple(given)
    free = [n for n in names if n not in chosen.values()]
    found = tuple(n for n in free if _key(n).replace("_", " ") in FINDING_COLUMNS)
    return found if len(found) > 1 else ()


def _row(
    file: pathlib.Path,
    number: int,
    record: Mapping[str, Any],
    columns: Mapping[str, str],
    label_columns: Sequence[str],
) -> Row:
    def value(field: str) -> str:
        raw = record.get(columns.get(field, ""), "")
        if isinstance(raw, list):
            raw = " ".join(str(part) for part in raw)
        return "" if raw is None else str(raw).strip()

    image = value("image")
    if not image:
        raise UserError(f"{file} line {number}: the image column {columns['image']!r} is empty")
    split = value("split").lower()
    if split and split not in _SPLIT_NAMES:
        raise UserError(
            f"{file} line {number}: split {split!r} is unknown; use train, validation or test, or leave "
            "the column out with --option split_column="
        )
    findings, impression = value("findings"), value("impression")
    text = value("text") or "\n".join(
        f"{name}: {part}"
        for name, part in (("FINDINGS", findings), ("IMPRESSION", impression))
        if part
    )
    if label_columns:
        labels = _single_labels(file, number, {c: record.get(c) for c in label_columns})
    else:
        cell = record.get(columns.get("label", ""))
        labels = (
            _single_labels(file, number, cell) if isinstance(cell, dict) else _listed_labels(cell)
        )
    return Row(
        number=number,
        image=image,
        text=text,
        findings=findings,
        impression=impression,
        subject_id=value("subject_id"),
        study_id=value("study_id"),
        labels=labels,
        unnamed=-2
        if label_columns or isinstance(record.get(columns.get("label", "")), dict)
        else 0,
        split=_SPLIT_NAMES.get(split, ""),
        view_position=value("view_position"),
        sex=value("sex"),
        age=_number(value("age")),
    )


def _number(text: str) -> float:
    """The leading number of a cell ("063Y" of DICOM is 63), NaN without one."""
    match = re.match(r"\d+(?:\.\d+)?", text)
    return float(match.group()) if match else math.nan


def _listed_labels(raw: Any) -> dict[str, int] | None:
    """Labels of a cell that names them: a list, or text separated by / , ; |. None = not labelled."""
    parts = raw if isinstance(raw, list) else re.split(r"[/,;|]", "" if raw is None else str(raw))
    named = [str(part).strip() for part in parts]
    return {name: 1 for name in named if name.lower() not in _MISSING_LABELS} or None


def _single_labels(
    file: pathlib.Path, number: int, cells: Mapping[str, Any]
) -> dict[str, int] | None:
    """Labels with a cell of their own each; blank ones are unknown and left out."""
    labels = {}
    for name, raw in cells.items():
        text = "" if raw is None else str(raw).strip().lower()
        if text in _MISSING_LABELS:
            continue
        if text not in _LABEL_VALUES:
            raise UserError(
                f"{file} line {number}: label {name!r} is {raw!r}; expected 1, 0, -1 (uncertain) or "
                "blank (unknown)"
            )
        labels[name] = _LABEL_VALUES[text]
    return labels or None


def label_names(
    rows: tuple[Row, ...], label_columns: Sequence[str] = (), *, minimum: int, most: int
) -> tuple[str, ...]:
    """The classes: label columns in their order, else the labels that at least `minimum` rows have,
    the most frequent first, at most `most`."""
    if label_columns:
        return tuple(label_columns)
    counts = Counter(
        name for row in rows for name, value in (row.labels or {}).items() if value == 1
    )
    frequent = [
        n for n, c in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if c >= minimum
    ]
    return tuple(frequent[:most])
