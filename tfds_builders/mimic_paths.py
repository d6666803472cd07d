"""Paths of MIMIC-CXR, as the datasets that annotate its images write them."""

from __future__ import annotations

import dataclasses
import re

from medvlp_jax.errors import UserError

EXCLUDE_WARNING = (
    "warning: its images are images of MIMIC-CXR; for pretraining, build mimic_cxr with --option "
    "exclude=FILE, FILE being its table or splits/test.txt of this dataset"
)

_PATH = re.compile(r"(?:files/)?p\d\d/p(\d+)/s(\d+)/([0-9A-Za-z_-]+)(?:\.(?:jpg|dcm))?")


@dataclasses.dataclass(frozen=True, slots=True)
class MimicImage:
    """One image of MIMIC-CXR.

    Attributes:
        subject_id: patient.
        study_id: study.
        dicom_id: image.
    """

    subject_id: str
    study_id: str
    dicom_id: str

    @property
    def path(self) -> str:
        """Of the image in MIMIC-CXR-JPG: `files/p10/p10000032/s50414267/ID.jpg`."""
        folder = f"p{self.subject_id[:2]}/p{self.subject_id}/s{self.study_id}"
        return f"files/{folder}/{self.dicom_id}.jpg"


def parse_path(text: str, place: str) -> MimicImage:
    """Image of a path with or without `files/` and suffix.

    Args:
        text: cell of a table.
        place: file and line, for the message.

    Raises:
        UserError: something else.
    """
    match = _PATH.fullmatch(text)
    if match is None:
        raise UserError(
            f"{place}: {text!r} is no path of MIMIC-CXR like files/p10/p10000032/s50414267/ID.jpg"
        )
    return MimicImage(*match.groups())
