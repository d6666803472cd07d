"""Rows of a dataset in an HDF5 file, also of one that is still gzip-compressed."""

from __future__ import annotations

import gzip
import os
import pathlib
import shutil
import zlib
from typing import Any

import numpy as np

from medvlp_jax.data.images import ImageError
from medvlp_jax.errors import UserError


class H5Rows:
    """One dataset of an HDF5 file; threads may read at the same time (h5py has a lock of its own).

    Attributes:
        shape: of the dataset.
        dtype: of its elements.
    """

    def __init__(self, file: pathlib.Path, name: str):
        """Reads the shape.

        Args:
            file: HDF5 file.
            name: of the dataset.

        Raises:
            UserError: h5py is not installed, no HDF5 file, or without that dataset.
        """
        self._file, self._name = file, name
        self._opened: Any = None
        self._dataset: Any = None
        try:
            dataset = self._open()
            self.shape, self.dtype = dataset.shape, dataset.dtype
        except ModuleNotFoundError:
            raise UserError("HDF5 files need h5py: pip install h5py") from None
        except (OSError, KeyError) as error:
            raise UserError(
                f"{file} has no dataset {name} or is damaged ({error}); download it again"
            ) from None
        finally:
            self.close()

    def _open(self) -> Any:
        import h5py  # loaded only where there is an HDF5 file

        self._opened = h5py.File(self._file, "r")
        return self._opened[self._name]

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: not the open file."""
        return {**vars(self), "_opened": None, "_dataset": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """One row, or several.

        Raises:
            ImageError: the file is damaged there.
        """
        if self._dataset is None:
            self._dataset = self._open()
        try:
            return self._dataset[index]
        except (OSError, RuntimeError) as error:
            raise ImageError(f"{self._file.name} is damaged: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._opened is not None:
            self._opened.close()
        self._opened = self._dataset = None


def decompressed(file: pathlib.Path) -> pathlib.Path:
    """The file itself, or what a `.gz` holds, written beside it: HDF5 is read at many places.

    Raises:
        UserError: the archive is damaged or its folder cannot be written to.
    """
    if file.suffix != ".gz":
        return file
    target = file.with_suffix("")
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    try:
        with gzip.open(file) as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        part.replace(target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}); download it again") from None
    except OSError as error:
        raise UserError(
            f"{file} cannot be decompressed beside itself ({error.strerror or error}): run `gunzip -k` where "
            "there is room, and give --manual-dir that folder"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return target
