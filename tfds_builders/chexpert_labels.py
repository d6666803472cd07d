"""The 14 findings of CheXpert as tables hold them: 1.0, 0.0, -1.0 (uncertain) or blank (not mentioned)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from medvlp_jax.errors import UserError

_VALUES = {"": -2, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def label_cells(
    row: Mapping[str, str], names: Sequence[str], *, file: pathlib.Path, line: int
) -> np.ndarray:
    """int8 [K]: 1 present, 0 absent, -1 uncertain, -2 unknown (blank: the report does not mention it).

    Args:
        row: column -> cell.
        names: columns of the findings.
        file: for the message.
        line: likewise.

    Raises:
        UserError: another value.
    """
    values = np.empty(len(names), np.int8)
    for k, name in enumerate(names):
        value = _VALUES.get(row[name])
        if value is None:
            raise UserError(
                f"{file} line {line}: {name} is {row[name]!r}; expected 1.0, 0.0, -1.0 or blank"
            )
        values[k] = value
    return values
