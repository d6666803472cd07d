"""Temporary files of large builds: TFDS writes what exceeds its memory through TensorFlow, this without."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
from collections.abc import Iterator

from tensorflow_datasets.core import shuffle

MEMORY_LIMIT = 256 << 20
"""Bytes of examples that a build holds in memory; the rest waits in files beside the dataset."""

_HEADER = struct.Struct("=QQQ")  # the two halves of the 128-bit key, length of the data
_LOW_HALF = (1 << 64) - 1


class Bucket:
    """Examples of one range of keys in one file; takes the place of TFDS's own class.

    The file is opened for each example, which costs little beside decoding an image: a build has a thousand
    buckets, and most systems allow a process about as many open files.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Args: the file, which is made by the first `add`."""
        self._path = pathlib.Path(path)
        self._length = 0
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of all examples."""
        return self._size

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        """Appends an example.

        Args:
            key: of 128 bits.
            data: the serialised example.
        """
        if not self._length:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(_HEADER.pack(key >> 64, key & _LOW_HALF, len(data)))
            file.write(data)
        self._length += 1
        self._size += len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Keys and examples in the order in which they were added."""
        if not self._length:
            return
        with self._path.open("rb") as file:
            while header := file.read(_HEADER.size):
                high, low, length = _HEADER.unpack(header)
                yield (high << 64) | low, file.read(length)

    def del_file(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def spilling_without_tensorflow(limit: int | None = None) -> Iterator[None]:
    """Lets TFDS build datasets of any size without TensorFlow, in little memory.

    The order of the examples does not depend on it: they are sorted by the hash of their key either way.

    Args:
        limit: bytes of examples in memory; None = `MEMORY_LIMIT`.
    """
    before = shuffle._Bucket, shuffle.MAX_MEM_BUFFER_SIZE
    shuffle._Bucket = Bucket  # type: ignore[misc,assignment]
    shuffle.MAX_MEM_BUFFER_SIZE = MEMORY_LIMIT if limit is None else limit
    try:
        yield
    finally:
        shuffle._Bucket, shuffle.MAX_MEM_BUFFER_SIZE = before
