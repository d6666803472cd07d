"""Splits by patient: the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "validation", "test")


def hash_splits(
    patients: set[str],
    fractions: Sequence[float],
    fold: int = 0,
    splits: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Patients in the order of their hash, cut at the wanted shares: the same patients always give the
    same split, and a new patient moves at most two others.

    Args:
        patients: ids.
        fractions: shares of the splits, which add up to 1.
        fold: turns the order by so many shares of the last split, for a cross-validation.
        splits: names, one per share.

    Returns:
        Patient -> split.
    """

    def place(patient: str) -> bytes:
        return hashlib.sha256(f"medvlp-split:{patient}".encode()).digest()

    ordered = sorted(patients, key=place)
    turn = round(fold * fractions[-1] * len(ordered))
    ordered = ordered[len(ordered) - turn :] + ordered[: len(ordered) - turn]
    edges = np.round(np.cumsum(fractions) * len(ordered)).astype(int)
    placed = np.searchsorted(edges[:-1], np.arange(len(ordered)), side="right")
    return {patient: splits[int(k)] for patient, k in zip(ordered, placed, strict=True)}
