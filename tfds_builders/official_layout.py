"""Checks that a folder holds a dataset as it is published, before a build starts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Needed:
    """One file or folder of the official layout.

    Attributes:
        names: paths relative to the folder, of which one is enough.
        what: what it holds and where it comes from, for the message.
    """

    names: tuple[str, ...]
    what: str


def require_layout(
    folder: pathlib.Path, spec: DatasetSpec, needed: Sequence[Needed]
) -> tuple[pathlib.Path, ...]:
    """Finds the files of a dataset.

    Returns:
        One existing path per entry of `needed`.

    Raises:
        UserError: no such folder, or files are missing; the message lists all of them, says how to get
            them, and names the subfolder that was probably meant.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give --manual-dir the folder of {spec.name}. {spec.access}. "
            f"It must hold {spec.layout}"
        )
    found = [find_one(folder, entry.names) for entry in needed]
    missing = [entry for entry, path in zip(needed, found, strict=True) if path is None]
    if missing:
        lines = "; ".join(f"{' or '.join(entry.names)} ({entry.what})" for entry in missing)
        raise UserError(
            f"{folder} is not a complete {spec.name}: missing {lines}."
            f"{_elsewhere(folder, missing)} {spec.access}. The folder must hold {spec.layout}"
        )
    return tuple(path for path in found if path is not None)


def find_one(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
    """The first of the names that exists below the folder; a table may also be (un)compressed."""
    for name in names:
        other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
        for candidate in (folder / name, folder / other):
            if candidate.exists():
                return candidate
    return None


def _elsewhere(folder: pathlib.Path, missing: Sequence[Needed]) -> str:
    """Hint at the subfolder, or the parent, that holds what is missing."""
    nearby = [child for child in sorted(folder.iterdir()) if child.is_dir()] + [folder.parent]
    for place in nearby:
        if all(find_one(place, entry.names) for entry in missing):
            return f" {place} holds it: give --manual-dir {place}."
    return ""


def require_images(
    folder: pathlib.Path, images: Iterable[str], *, spec: DatasetSpec, table: pathlib.Path
) -> None:
    """Stops when images that a table lists are not there.

    Raises:
        UserError: with the number of missing files and the first few.
    """
    missing, total = [], 0
    for name in images:
        total += 1
        if not (folder / name).exists():
            missing.append(name)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise UserError(
            f"{len(missing)} of {total} images that {table.name} lists are not in {folder}: {shown}. "
            f"{spec.access}. Finish the download, or build what is there: "
            "--option missing_images=skip"
        )
