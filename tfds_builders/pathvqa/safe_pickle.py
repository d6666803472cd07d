"""Reads pickles of plain lists, dictionaries, texts and numbers; a pickle that would run code is refused."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

from medvlp_jax.errors import UserError


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function, so that nothing can be called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_plain_pickle(file: pathlib.Path) -> Any:
    """Content of a pickle that holds plain data alone.

    Raises:
        UserError: it names a class or function, which could run any code, or it is damaged.
    """
    try:
        with file.open("rb") as data:
            return _PlainUnpickler(data, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises many kinds
        raise UserError(
            f"{file} is not a pickle of plain lists and texts ({error}) and was not executed; take the "
            "Parquet files of https://huggingface.co/datasets/flaviagiammarino/path-vqa"
        ) from None
