"""Which images belong to one study, and which image shows the patient before."""

from __future__ import annotations

import dataclasses

import numpy as np

from medvlp_jax.data.source import Examples, columns
from medvlp_jax.errors import UserError

_FRONTAL = ("PA", "AP", "FRONTAL")
_UNKNOWN, _NOT_FRONTAL = len(_FRONTAL), len(_FRONTAL) + 1


@dataclasses.dataclass(frozen=True)
class Studies:
    """Images of a split by study.

    Attributes:
        leaders: int64 [S], one image per study (its best frontal one), in the order of the split.
        members: leader -> all images of its study, frontal ones first.
        prior: int64 [n], the frontal image of the study before of each image, -1 where there is none.
    """

    leaders: np.ndarray
    members: dict[int, tuple[int, ...]]
    prior: np.ndarray


def view_rank(view_position: str) -> int:
    """Order of preference of a view: PA, AP, other frontal ones, unknown, all others."""
    view = view_position.upper().strip()
    for rank, frontal in enumerate(_FRONTAL):
        if view == frontal or view.startswith(f"{frontal} "):
            return rank
    return _NOT_FRONTAL if view else _UNKNOWN


def index_studies(source: Examples) -> Studies:
    """Reads the ids of a split once and groups its images.

    An image without a study id is a study of its own. A prior counts when it is another study of the same
    patient in the same split, not later by `days` (where stored), with an image that is frontal or of
    unknown view.
    """
    fields = ("subject_id", "study_id", "prior_study_id", "view_position", "days")
    table = columns(source, fields)
    rank = np.array([view_rank(view or "") for view in table["view_position"]], np.int64)
    study_of: list[tuple[str, str]] = []
    images: dict[tuple[str, str], list[int]] = {}
    ids = zip(table["subject_id"], table["study_id"], strict=True)
    for index, (subject, study) in enumerate(ids):
        key = (subject or "", study) if study else ("", f"#{index}")
        study_of.append(key)
        images.setdefault(key, []).append(index)
    groups = {
        key: tuple(sorted(group, key=lambda i: (rank[i], i))) for key, group in images.items()
    }
    prior = np.full(len(study_of), -1, np.int64)
    for index, name in enumerate(table["prior_study_id"]):
        key = (table["subject_id"][index] or "", name)
        if not name or key not in groups or key == study_of[index]:
            continue
        best, days = groups[key][0], table["days"]
        later = days[index] is not None and days[best] > days[index]
        if rank[best] != _NOT_FRONTAL and not later:
            prior[index] = best
    return Studies(
        leaders=np.sort(np.array([group[0] for group in groups.values()], np.int64)),
        members={group[0]: group for group in groups.values()},
        prior=prior,
    )


def drawn_examples(source: Examples, studies: Studies | None, per_study: int) -> np.ndarray:
    """Examples that stand for the rows of a split, int64: all, or one image of each study."""
    if studies is None or per_study == 1:
        return np.arange(len(source))
    return studies.leaders


def require_study_fields(source: Examples, *, prior: bool, per_study: int) -> None:
    """Stops a training whose data cannot have what the config asks for (an evaluation goes on without).

    Raises:
        UserError: names the feature that the dataset lacks.
    """
    if prior and "prior_study_id" not in source.feature_names:
        raise UserError(
            f"data.image.prior=True needs the feature prior_study_id, which {source.name} does not store "
            "(mimic_cxr and synthetic_cxr do): set it to False"
        )
    if per_study > 1 and "study_id" not in source.feature_names:
        raise UserError(
            f"data.image.per_study={per_study} needs the feature study_id, which {source.name} does not "
            "store: set it to 1"
        )
