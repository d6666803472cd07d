"""Images in Parquet files of the Hugging Face form: a column `image` of {bytes, path}."""

from __future__ import annotations

import collections
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from medvlp_jax.errors import UserError

_KEPT = 2


class ParquetImages:
    """Reads rows in order, and single images again later; threads may read at the same time.

    Two row groups stay in memory, because rows are asked for in about their order.
    """

    def __init__(self, columns: Sequence[str]):
        """Args: columns of text besides `image`."""
        self._columns = tuple(columns)
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[tuple[pathlib.Path, int], list[bytes]]
        self._groups = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: neither the lock nor the groups."""
        return {"_columns": self._columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_columns"])

    def rows(
        self, file: pathlib.Path
    ) -> Iterator[tuple[tuple[pathlib.Path, int, int], bytes, dict[str, str]]]:
        """Place, image content and texts of every row.

        Raises:
            UserError: not Parquet, or without one of the columns.
        """
        opened = _open(file)
        missing = [c for c in ("image", *self._columns) if c not in opened.schema_arrow.names]
        if missing:
            raise UserError(f"{file} has no column {', '.join(missing)}; download it again")
        for group in range(opened.num_row_groups):
            try:
                table = opened.read_row_group(group, columns=["image", *self._columns])
            except (OSError, ValueError) as error:
                raise UserError(f"{file} is damaged ({error}); download it again") from None
            for number, row in enumerate(table.to_pylist()):
                texts = {name: str(row[name] or "").strip() for name in self._columns}
                yield (file, group, number), _content(row["image"]), texts

    def read(self, place: tuple[pathlib.Path, int, int]) -> bytes:
        """Content of the image at a place that `rows` gave."""
        file, group, number = place
        with self._lock:
            if (file, group) not in self._groups:
                column = _open(file).read_row_group(group, columns=["image"])["image"]
                self._groups[file, group] = [_content(image) for image in column.to_pylist()]
                while len(self._groups) > _KEPT:
                    self._groups.popitem(last=False)
            return self._groups[file, group][number]


def _open(file: pathlib.Path) -> Any:
    """Parquet file, of which nothing but the schema has been read."""
    try:
        import pyarrow.parquet  # loaded only where there is a Parquet file
    except ModuleNotFoundError:
        raise UserError("Parquet files need pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a Parquet file ({error}); download it again") from None


def _content(image: Any) -> bytes:
    """File content of a cell; empty where there is none."""
    return (image or {}).get("bytes") or b""
