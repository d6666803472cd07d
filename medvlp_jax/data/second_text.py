"""A second text per image or study, such as a back-translated report (CXR-CLIP, arXiv 2310.13292).

The file is the user's; nothing is translated here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from medvlp_jax.data.text_tables import TEXT_COLUMNS, find_column, read_rows
from medvlp_jax.errors import UserError

ID_COLUMNS = ("image_id", "study_id")
SECOND_TEXT_COLUMNS = (
    "second_text",
    "back_translation",
    "text_augment",
    "translation",
    *TEXT_COLUMNS,
)


def load_second_texts(
    path: str | os.PathLike[str], *, id_column: str = "", text_column: str = ""
) -> dict[str, str]:
    """Reads a table of second texts.

    Args:
        path: .csv, .tsv or .jsonl with a column `image_id` or, where there is none, `study_id`, and a
            column `second_text`, `back_translation` or `text`; one row per id, equal repeats are allowed.
        id_column: default: the first known name.
        text_column: default: the first known name.

    Returns:
        id -> text; give it to `second_text`.

    Raises:
        UserError: unreadable table, a column missing, a blank id or text, an id with two texts; the
            message names the line.
    """
    rows = read_rows(path)
    columns = {
        "id": (find_column(path, rows, ID_COLUMNS, id_column), ID_COLUMNS),
        "text": (
            find_column(path, rows, SECOND_TEXT_COLUMNS, text_column),
            SECOND_TEXT_COLUMNS[:5],
        ),
    }
    for what, (found, known) in columns.items():
        if not found:
            raise UserError(
                f"{path} has no {what} column; name one of its columns {', '.join(known)}"
            )
    (key_column, _), (value_column, _) = columns.values()
    texts: dict[str, str] = {}
    for row in rows:
        key, text = row.cells.get(key_column, ""), row.cells.get(value_column, "")
        if not (key and text):
            blank = value_column if key else key_column
            raise UserError(
                f"{path} line {row.line}: {blank} is blank; fill it in or leave the row out"
            )
        if texts.setdefault(key, text) != text:
            raise UserError(
                f"{path} line {row.line}: a second text for {key_column} {key!r}, which has another one "
                "already; keep one row per id"
            )
    return texts


def second_text(texts: Mapping[str, str], *, image_id: str = "", study_id: str = "") -> str:
    """The second text of an example: by its image, else by its study, else ""."""
    return texts.get(image_id) or texts.get(study_id) or ""
