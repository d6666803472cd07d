"""Which patients a task with few labels may learn from: fixed by a hash, stratified, nested."""

from __future__ import annotations

import hashlib

import numpy as np


def patient_subset(
    subject_id: np.ndarray, positive: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Rows of a share of the patients.

    Patients are put in an order that is fixed by a hash of the seed and their ids, and the first
    round(fraction x patients), at least one, are taken with all their rows. So the subset does not depend on
    the order of the rows or on any random generator, and a smaller share is part of a larger one. In that
    order the patients of each stratum (those with the same rarest positive label) are spread evenly: every
    share holds about its share of every label.

    Args:
        subject_id: [n] patient of each row.
        positive: [n, K] where a label is known and present.
        fraction: in (0, 1].
        seed: of the choice.

    Returns:
        Rising row numbers.
    """
    patients, member = np.unique(subject_id, return_inverse=True)
    number = round(fraction * len(patients))
    chosen = _order(patients, strata(member, positive), seed)[: max(1, number)]
    return np.flatnonzero(np.isin(member, chosen))


def few_per_class(
    subject_id: np.ndarray, label: np.ndarray, mask: np.ndarray, shots: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `shots` positive and `shots` negative images of one label, one image of a patient per class
    as long as there are such; fewer where the split has fewer.

    Args:
        subject_id: [n].
        label, mask: [n] in {0, 1}, and where it is known.
        shots: per class.
        seed: of the choice.

    Returns:
        Row numbers of the positives and of the negatives.
    """
    rank = np.array([_hash(seed, f"{s}:{row}") for row, s in enumerate(subject_id)])
    found = []
    for value in (1, 0):
        rows = np.flatnonzero((mask > 0) & (label == value))
        rows = rows[np.argsort(rank[rows], kind="stable")]
        _, first = np.unique(subject_id[rows], return_index=True)
        first = np.sort(first)
        others = np.setdiff1d(np.arange(len(rows)), first)
        found.append(np.sort(rows[np.concatenate([first, others])[:shots]]))
    return found[0], found[1]


def strata(member: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Stratum of each patient: the rarest label (by patients) that any of its images has, K for none.

    Args:
        member: [n] patient 0 ... P - 1 of each row.
        positive: bool [n, K].

    Returns:
        int [P].
    """
    patients, labels = int(member.max()) + 1, positive.shape[1]
    has = np.zeros((patients, labels), bool)
    np.logical_or.at(has, member, positive)
    found = np.full(patients, labels)
    for k in np.argsort(-has.sum(axis=0), kind="stable"):  # the rarest comes last and stays
        found[has[:, k]] = k
    return found


def _order(patients: np.ndarray, stratum: np.ndarray, seed: int) -> np.ndarray:
    """Patient numbers in the order in which they are taken.

    Number j of m in a stratum stands at (j + u) / m with one u in [0, 1) per stratum: so even a stratum of
    one patient is in a 1 % subset with probability 1 %.
    """
    rank = np.array([_hash(seed, str(patient)) for patient in patients])
    place = np.empty(len(patients))
    for s in np.unique(stratum):
        inside = np.flatnonzero(stratum == s)
        inside = inside[np.argsort(rank[inside], kind="stable")]
        place[inside] = (np.arange(len(inside)) + _hash(seed, f"stratum {s}")) / len(inside)
    return np.lexsort((rank, place))


def _hash(seed: int, text: str) -> float:
    """A number in [0, 1) that depends on seed and text alone."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
