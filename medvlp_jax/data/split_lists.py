"""Which example is in which split, as files beside a dataset by which two sites compare theirs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable

from medvlp_jax.errors import UserError

FOLDER = "splits"
"""Folder of the dataset version: `splits.json`, and `NAME.txt` with one id per line for each split."""


@dataclasses.dataclass(frozen=True)
class SplitLists:
    """What `splits.json` says.

    Attributes:
        version: of the rule that puts examples into splits.
        hash: `split_hash` of all examples.
        counts: split -> number of ids.
        hashes: split -> `split_hash` of that split alone.
    """

    version: str
    hash: str
    counts: dict[str, int]
    hashes: dict[str, str]


def split_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the sorted (split, image) pairs: equal hashes mean equal splits."""
    lines = sorted(f"{split}\t{image}" for split, image in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_split_lists(
    folder: pathlib.Path, examples: Iterable[tuple[str, str]], *, version: str
) -> None:
    """Writes the ids of each split, sorted, and their hashes. Rejected images are among them: a list depends
    on the official tables alone.

    Args:
        folder: of the dataset version.
        examples: (split, id) pairs.
        version: of the rule that puts examples into splits.
    """
    ids: dict[str, list[str]] = {}
    for split, key in sorted(examples):
        ids.setdefault(split, []).append(key)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for split, keys in ids.items():
        text = "".join(f"{key}\n" for key in keys)
        (folder / FOLDER / f"{split}.txt").write_text(text, encoding="utf-8")
    lists = SplitLists(
        version=version,
        hash=split_hash((split, key) for split, keys in ids.items() for key in keys),
        counts={split: len(keys) for split, keys in ids.items()},
        hashes={split: split_hash((split, key) for key in keys) for split, keys in ids.items()},
    )
    text = json.dumps(dataclasses.asdict(lists), indent=2) + "\n"
    (folder / FOLDER / "splits.json").write_text(text, encoding="utf-8")


def read_split_lists(folder: pathlib.Path) -> SplitLists | None:
    """What was written beside a dataset; None where nothing was.

    Raises:
        UserError: damaged.
    """
    file = folder / FOLDER / "splits.json"
    if not file.exists():
        return None
    try:
        return SplitLists(**json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); build the dataset again") from error


def compare_split_lists(folder: pathlib.Path, recorded: str) -> tuple[str, list[str]]:
    """The line by which two sites compare their splits, and whether the lists are those of the dataset.

    Args:
        folder: of the dataset version.
        recorded: `split_hash` of the dataset's metadata.

    Returns:
        ("" where nothing was written, problems).

    Raises:
        UserError: a list is damaged or not there.
    """
    lists = read_split_lists(folder)
    if lists is None:
        return "", []
    found: list[tuple[str, str]] = []
    for split in lists.counts:
        file = folder / FOLDER / f"{split}.txt"
        try:
            found += [(split, key) for key in file.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error}); build the dataset again") from error
    problems = []
    if split_hash(found) != lists.hash or lists.hash != recorded:
        problems.append(
            f"the lists in {folder / FOLDER} are not those of this dataset: build it again"
        )
    return f"split hash {recorded} (rule {lists.version})", problems
