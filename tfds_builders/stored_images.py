"""From an image file of the user to the bytes a dataset stores: safe paths, threads, rejected files."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from medvlp_jax.data.contrast import Equalise, equalise
from medvlp_jax.data.images import (
    ImageError,
    decode_image,
    encode_for_storage,
    resize_for_storage,
)
from medvlp_jax.errors import UserError

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_image(folder: pathlib.Path, name: str) -> np.ndarray:
    """Decodes one file below a folder.

    Args:
        folder: resolved absolute path.
        name: path relative to it.

    Returns:
        uint8 [H, W, 1 or 3].

    Raises:
        ImageError: with the reason: unreadable, not an image, or a path that leads out of the folder.
    """
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise ImageError("path leads out of the folder; copy the file into it")
        if path.exists() and not path.is_file():
            raise ImageError("is not a file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ImageError(f"cannot be read: {reason}") from error
    return decode_image(data)


def stored_bytes(
    image: np.ndarray, *, size: int, quality: int, contrast: Equalise = "none"
) -> bytes:
    """File content as it is stored.

    Args:
        image: uint8 [H, W, 1 or 3].
        size: shorter side in pixels; 0 keeps the original size.
        quality: of JPEG; 0 stores PNG, without compression when images are shrunk: they are small then, and
            training reads them as fast as JPEG.
        contrast: equalisation of the grey values at the original size; see `contrast.equalise`.
    """
    small = resize_for_storage(equalise(image, contrast), size)
    if quality:
        return encode_for_storage(small, "jpeg", quality)
    return encode_for_storage(small, "plain_png" if size else "png")


def load_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded], workers: int = 0
) -> Iterator[tuple[Item, concurrent.futures.Future[Loaded]]]:
    """Loads in threads, a few items at a time, and hands them out in order; memory stays constant.

    Args:
        items: what to load.
        load: called in a thread.
        workers: threads; 0 = one per core.
    """
    workers = workers or os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: collections.deque[tuple[Item, concurrent.futures.Future[Loaded]]] = collections.deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > 2 * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


class RejectedFiles:
    """Counts undecodable images, lists them in `rejected.jsonl`, and stops a build with too many."""

    def __init__(self, folder: pathlib.Path, *, allowed: int):
        """Args: folder of the dataset version (the list lies beside it), number that is tolerated."""
        self.file = folder.parent / "rejected.jsonl"
        self.allowed = allowed
        self.count = 0
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("", encoding="utf-8")

    def add(self, row: int | str, image: str, reason: str) -> None:
        """Notes one file.

        Args:
            row: number of the table's row, or the id of the example.
            image: path relative to the user's folder.
            reason: what is wrong with it.

        Raises:
            UserError: more than allowed.
        """
        self.count += 1
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "image": image, "reason": reason}) + "\n")
        if self.count > self.allowed:
            raise UserError(
                f"row {row}, image {image}: {reason}. That is {self.count} unusable images, "
                f"more than the {self.allowed} allowed; see {self.file}. Correct the files, or allow more "
                "with --option max_rejected=0.1"
            )
