"""Published JSON files: read whole, with messages that name the file and the place in it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medvlp_jax.errors import UserError


def read_json(file: pathlib.Path) -> Any:
    """Content of a UTF-8 JSON file.

    Raises:
        UserError: not JSON.
    """
    return parse_json(file.read_bytes(), str(file))


def parse_json(data: bytes, source: str) -> Any:
    """Value of JSON text.

    Args:
        data: UTF-8, with or without a byte order mark.
        source: file, for the message.

    Raises:
        UserError: not JSON.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{source} is not JSON ({error}); download it again") from None


def listed(value: Any, key: str, keys: Sequence[str], source: str) -> list[Mapping[str, Any]]:
    """A list of objects in a JSON file.

    Args:
        value: the file's content, or the object that holds the list.
        key: of the list in `value`; "" when `value` is the list itself.
        keys: keys that each object must have.
        source: file, for the message.

    Raises:
        UserError: no such list, or an object without one of the keys.
    """
    name = key or "list"
    found = value.get(key) if key and isinstance(value, Mapping) else value
    if not isinstance(found, list):
        raise UserError(f"{source} has no {name} of objects; take the published file unchanged")
    for number, entry in enumerate(found, start=1):
        missing = [k for k in keys if not isinstance(entry, Mapping) or k not in entry]
        if missing:
            raise UserError(
                f"{source} {name} entry {number} has no {', '.join(missing)}; take the published file "
                "unchanged"
            )
    return found


def box_of(value: Any, source: str) -> tuple[float, float, float, float]:
    """Four numbers.

    Raises:
        UserError: something else.
    """
    try:
        a, b, c, d = (float(number) for number in value)
    except (TypeError, ValueError):
        raise UserError(f"{source}: box is {value!r}, expected four numbers") from None
    return a, b, c, d
