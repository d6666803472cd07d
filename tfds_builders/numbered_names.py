"""Unique keys for collections that pair one image with several texts."""

from __future__ import annotations


class NumberedNames:
    """Gives the second row of an image the key `NAME#2`, the third `NAME#3`, and so on."""

    def __init__(self) -> None:
        """No name has been seen."""
        self._seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """Key of the next row of an image.

        Args:
            name: of the image.
        """
        count = self._seen[name] = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    @property
    def images(self) -> int:
        """How many different names there were."""
        return len(self._seen)
