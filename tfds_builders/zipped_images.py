"""Images inside zip archives, read where they lie: collections of a terabyte need not be unpacked."""

from __future__ import annotations

import pathlib
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from medvlp_jax.data.images import ImageError, decode_image
from medvlp_jax.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MEMBER = np.dtype(
    [("archive", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("method", "<i2"), ("crc", "<u4")]
)
_ENCRYPTED = 1


class ZippedImages:
    """Members of archives by their file name; the folders inside the archives play no role.

    Threads may read at the same time. A member takes about 330 bytes of memory, and 850 while the contents
    are read.
    """

    def __init__(self, archives: Sequence[pathlib.Path]):
        """Reads the tables of contents.

        Args:
            archives: zip files; of members with one name the first is taken.

        Raises:
            UserError: one is no zip file, or is incomplete.
        """
        self._archives = tuple(archives)
        self._numbers: dict[str, int] = {}
        tables = [
            self._read_contents(number, archive) for number, archive in enumerate(self._archives)
        ]
        self._members = np.concatenate(tables) if tables else np.zeros(0, _MEMBER)

    def _read_contents(self, number: int, archive: pathlib.Path) -> np.ndarray:
        """Places of the members of one archive."""
        try:
            with zipfile.ZipFile(archive) as opened:
                entries = [i for i in opened.infolist() if not i.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UserError(
                f"{archive} is not a complete zip file ({error}); download it again"
            ) from None
        first = len(self._numbers)
        places = []
        for entry in entries:
            name = posixpath.basename(entry.filename)
            if name in self._numbers:
                continue
            self._numbers[name] = first + len(places)
            method = -1 if entry.flag_bits & _ENCRYPTED else entry.compress_type
            places.append((number, entry.header_offset, entry.compress_size, method, entry.CRC))
        return np.asarray(places, _MEMBER)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, name: str) -> np.ndarray:
        """One image, uint8 [H, W, 1 or 3].

        Raises:
            ImageError: no such member, or it is damaged or not an image.
        """
        return decode_image(self.read_bytes(name))

    def read_bytes(self, name: str) -> bytes:
        """Content of a member.

        Raises:
            ImageError: no such member, or it is damaged.
        """
        if name not in self._numbers:
            raise ImageError("is in none of the archives")
        place = self._members[self._numbers[name]]
        archive, size, method = (
            self._archives[place["archive"]],
            int(place["size"]),
            place["method"],
        )
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError(f"is encrypted or packed in an unknown way in {archive.name}")
        try:
            with archive.open("rb") as file:
                file.seek(int(place["offset"]))
                # The length of the extra field here differs from the one in the table of contents.
                magic, name_length, extra_length = _LOCAL_HEADER.unpack(
                    file.read(_LOCAL_HEADER.size)
                )
                if magic != b"PK\x03\x04":
                    raise ImageError(f"is not where {archive.name} says")
                file.seek(name_length + extra_length, 1)
                data = file.read(size)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompress(data, -zlib.MAX_WBITS)
        except (OSError, struct.error, zlib.error) as error:
            raise ImageError(f"cannot be read from {archive.name}: {error}") from error
        if zlib.crc32(data) != place["crc"]:
            raise ImageError(f"is damaged in {archive.name} (its checksum differs)")
        return data


def find_place(folder: pathlib.Path, name: str, places: Sequence[str], zipped: ZippedImages) -> str:
    """Path of an image relative to the folder, as `Record.image` holds it.

    Args:
        folder: the official files.
        name: of the image.
        places: folders below it in which the image may lie, unpacked.
        zipped: archives in which it may lie, too.

    Returns:
        The path; "" when it is in an archive; its first place when it is nowhere, for the message.
    """
    if name in zipped:
        return ""
    paths = [posixpath.join(place, name) for place in places]
    return next((path for path in paths if (folder / path).exists()), paths[0])
