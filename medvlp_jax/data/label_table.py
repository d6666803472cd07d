"""Labels of a table of reports, and how well they agree with labels of people."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medvlp_jax.data.labeler import LABELS, MISSING, PRESENT, UNCERTAIN, label_reports
from medvlp_jax.data.reports import stable_id
from medvlp_jax.data.text_tables import TextRow, read_rows, row_ids, row_texts
from medvlp_jax.errors import UserError

SAME_FINDING = {"Effusion": "Pleural Effusion"}
"""Columns of other label sets that mean the same as one of ours under another name."""
RELATED = {
    "Lung Lesion": ("Nodule", "Mass"),
    "Pleural Other": ("Pleural_Thickening", "Pleural Thickening"),
    "No Finding": ("normal", "Normal"),
}
"""Our labels and columns of other label sets (any of them) that are near but not the same."""


class Agreement(NamedTuple):
    """How a label agrees with the gold column over the rows where the gold is known.

    Attributes:
        positives: rows with gold 1.
        precision: share of our positives that the gold has; NaN without any.
        recall: share of the gold's positives that we have; NaN without any.
        f1: harmonic mean of the two, 2 TP / (our positives + gold positives).
        related: the gold's label is only near to ours, see `RELATED`.
    """

    positives: int
    precision: float
    recall: float
    f1: float
    related: bool = False


def label_file(
    reports: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    id_column: str = "",
    text_column: str = "",
) -> int:
    """Labels a table of reports and writes a table in the manner of CheXpert.

    Args:
        reports: table with an id and a text (or findings and impression) column; see `text_tables`.
        out: .csv to write: the id column, then the 14 labels: 1, 0, -1 = uncertain, blank = not mentioned.
        id_column: default: the first known name.
        text_column: default: the first known name.

    Returns:
        Number of reports.

    Raises:
        UserError: unreadable table, or a column is missing.
    """
    rows = read_rows(reports)
    ids = row_ids(reports, rows, id_column)
    labels = label_reports(row_texts(reports, rows, text_column))
    with pathlib.Path(out).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *LABELS])
        for name, row in zip(ids, labels.tolist(), strict=True):
            writer.writerow([name, *("" if value == MISSING else value for value in row)])
    return len(rows)


def gold_columns(columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which columns of a gold table speak of which label: label -> columns, any of them 1 = present."""
    found: dict[str, tuple[str, ...]] = {}
    for name in LABELS:
        same = [c for c in columns if _same(c) == name]
        near = [c for c in columns if c in RELATED.get(name, ())]
        if same or near:
            found[name] = tuple(same or near)
    return found


def _same(column: str) -> str:
    """The name that one of our labels with the same meaning has."""
    return SAME_FINDING.get(column, column.replace("_", " "))


def gold_labels(
    path: str | os.PathLike[str], rows: Sequence[TextRow], columns: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Gold values, int8 [N, K] in the order of `columns`: 1, 0, or -2 where blank or uncertain.

    Raises:
        UserError: a cell is something else.
    """
    known = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": MISSING, "-1": MISSING, "-1.0": MISSING}
    values = np.empty((len(rows), len(columns)), np.int8)
    for i, row in enumerate(rows):
        for k, (label, names) in enumerate(columns.items()):
            cells = [row.cells.get(name, "") for name in names]
            wrong = [cell for cell in cells if cell not in known]
            if wrong:
                raise UserError(
                    f"{path} line {row.line}: {label} is {wrong[0]!r}; expected 1, 0, -1 or blank"
                )
            found = {known[cell] for cell in cells}
            values[i, k] = 1 if 1 in found else MISSING if MISSING in found else 0
    return values


def agreement(label: np.ndarray, gold: np.ndarray, *, uncertain: int = 0) -> Agreement:
    """Agreement of one label with the gold.

    Args:
        label: int [N] of our values 1, 0, -1, -2.
        gold: int [N]; rows that are neither 0 nor 1 are left out.
        uncertain: what our -1 counts as, 0 or 1.
    """
    known = (gold == 0) | (gold == 1)
    ours = (label == PRESENT) | ((label == UNCERTAIN) & (uncertain == 1))
    truth = gold == 1
    hits, called, real = (int((m & known).sum()) for m in (ours & truth, ours, truth))
    nan = float("nan")
    return Agreement(
        positives=real,
        precision=hits / called if called else nan,
        recall=hits / real if real else nan,
        f1=2 * hits / (called + real) if called + real else nan,
    )


def measure(
    reports: str | os.PathLike[str],
    gold: str | os.PathLike[str],
    *,
    id_column: str = "",
    text_column: str = "",
) -> dict[str, dict[str, Agreement]]:
    """Labels the reports of a gold table and compares, by halves of the table and as a whole.

    The halves are told apart by `stable_id(id) % 2`. The rules were written with half 0 of the Open-i
    gold table in view, so half 1 is the honest number there.

    Args:
        reports: table of reports, as for `label_file`.
        gold: table with an id column and columns of 1, 0, -1 or blank.
        id_column: of the reports; default: the first known name.
        text_column: likewise.

    Returns:
        `"half 0"`, `"half 1"`, `"all"` -> label -> agreement, uncertain counted as absent.

    Raises:
        UserError: unreadable table, no shared label, a gold row without a report.
    """
    rows, gold_rows = read_rows(reports), read_rows(gold)
    columns = gold_columns(list(gold_rows[0].cells))
    if not columns:
        raise UserError(f"{gold} has no column of a finding; name them as in {', '.join(LABELS)}")
    ids = row_ids(gold, gold_rows)
    texts = dict(
        zip(row_ids(reports, rows, id_column), row_texts(reports, rows, text_column), strict=True)
    )
    lost = [name for name in ids if name not in texts]
    if lost:
        raise UserError(
            f"{reports} has no report for {len(lost)} of {len(ids)} rows of {gold}, e.g. {lost[0]!r}; give "
            "the table of reports that belongs to it"
        )
    labels = label_reports(texts[name] for name in ids)
    truth = gold_labels(gold, gold_rows, columns)
    half = np.array([stable_id(name) % 2 for name in ids])
    parts = {"half 0": half == 0, "half 1": half == 1, "all": half >= 0}
    return {
        part: {
            name: agreement(labels[mask, LABELS.index(name)], truth[mask, k])._replace(
                related=_same(columns[name][0]) != name
            )
            for k, name in enumerate(columns)
        }
        for part, mask in parts.items()
    }


def macro_f1(found: Mapping[str, Agreement]) -> float:
    """Mean F1 over the labels that mean the same in both sets."""
    return float(np.nanmean([a.f1 for a in found.values() if not a.related]))


def agreement_table(results: Mapping[str, Mapping[str, Agreement]]) -> str:
    """Readable table of `measure`: per label the positives, precision, recall and F1 of each part."""
    parts = list(results)
    names = list(results[parts[0]])
    width = max(len(name) for name in names) + 2
    lines = [" " * width + "".join(f"{part:^28}" for part in parts)]
    lines.append(" " * width + "   n  prec.   rec.     F1   " * len(parts))
    for name in sorted(names, key=lambda n: results[parts[0]][n].related):
        marked = name + (" *" if results[parts[0]][name].related else "")
        line = f"{marked:<{width}}"
        for part in parts:
            a = results[part][name]
            line += f"{a.positives:>4}  {a.precision:5.3f}  {a.recall:5.3f}  {a.f1:5.3f}   "
        lines.append(line.rstrip())
    means = (f"{'':>19}{macro_f1(results[part]):5.3f}   " for part in parts)
    lines.append(f"{'macro':<{width}}{''.join(means)}".rstrip())
    if any(a.related for a in results[parts[0]].values()):
        lines.append("* the gold's label is only near to ours; not in the macro mean")
    return "\n".join(lines)
