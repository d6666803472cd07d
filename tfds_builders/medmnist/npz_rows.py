"""Rows of an array in an npz file without loading the array: the largest of MedMNIST has 16 GB."""

from __future__ import annotations

import collections
import math
import pathlib
import threading
import zipfile
import zlib
from typing import Any

import numpy as np

from medvlp_jax.data.images import ImageError
from medvlp_jax.errors import UserError

_BLOCK = 1 << 22  # bytes that are read at once
_KEPT = 8


class NpzRows:
    """One array of an npz file, compressed or not, C order, without objects.

    Threads may read at the same time. A few blocks of rows stay in memory, so rows that are asked for in
    about their order are decompressed once.

    Attributes:
        shape: of the array.
        dtype: of its elements.
    """

    def __init__(self, file: pathlib.Path, name: str):
        """Reads the header of the array.

        Args:
            file: npz file.
            name: of the array.

        Raises:
            UserError: damaged, no such array, or one that is stored in another way.
        """
        self._file, self._name = file, name
        self._start()
        try:
            with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                self.shape, by_column, self.dtype = read(stream)
                self._offset = stream.tell()
        except KeyError:
            raise UserError(f"{file} has no array {name}; download it again") from None
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file} is not a complete npz file ({error}); download it again"
            ) from None
        if by_column or self.dtype.hasobject or not self.shape:
            raise UserError(f"{file}: {name} is {self.dtype} {self.shape}; take the published file")
        self._row = self.dtype.itemsize * math.prod(self.shape[1:])
        self._rows = max(1, _BLOCK // max(1, self._row))

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._stream: Any = None
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: no open file and no block."""
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_stream", "_blocks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return self.shape[0]

    def all(self) -> np.ndarray:
        """The whole array."""
        with np.load(self._file, allow_pickle=False) as arrays:
            return arrays[self._name]

    def __getitem__(self, index: int) -> np.ndarray:
        """One row.

        Raises:
            ImageError: the file is damaged there.
        """
        number, place = divmod(index, self._rows)
        with self._lock:
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = self._read_block(number)
                while len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
        row = block[place * self._row : (place + 1) * self._row]
        if len(row) < self._row:
            raise ImageError(f"{self._file.name} ends before row {index} of {self._name}")
        return np.frombuffer(row, self.dtype).reshape(self.shape[1:])

    def _read_block(self, number: int) -> bytes:
        try:
            if self._stream is None:
                archive = zipfile.ZipFile(self._file)  # open until `close`
                self._stream = archive.open(f"{self._name}.npy")
            self._stream.seek(self._offset + number * self._rows * self._row)
            return self._stream.read(self._rows * self._row)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise ImageError(f"{self._file.name} is damaged: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
