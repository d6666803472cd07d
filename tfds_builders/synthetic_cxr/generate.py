"""Makes the examples of patients: image, report, truth; alone or in a pool of processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np

from tfds_builders.synthetic_cxr import acquisition, anatomy
from tfds_builders.synthetic_cxr import findings as disease
from tfds_builders.synthetic_cxr import labels as L
from tfds_builders.synthetic_cxr.questions import ask
from tfds_builders.synthetic_cxr.report import write_report
from tfds_builders.synthetic_cxr.world import BENCHMARK, Difficulty, Patient, Study, sample_patient

VERSION = "1.1.0"
"""Version of the generator: equal versions and seeds give equal examples."""

JPEG_QUALITY = 95

Example = dict[str, Any]


def patient_examples(seed: int, index: int, size: int, difficulty: Difficulty) -> list[Example]:
    """All examples of one patient, in order of time.

    Args:
        seed: seed of the corpus.
        index: number of the patient.
        size: height and width of the images in pixels.
        difficulty: how hard the findings are to see.

    Returns:
        Dictionaries as `synthetic_cxr.SyntheticCxr` stores them, with the images encoded.
    """
    patient = sample_patient(seed, index, difficulty)
    out = []
    for study in patient.studies:
        report = write_report(study, rng=np.random.default_rng((study.seed, 0)))
        for number, view in enumerate(study.views):
            rng = np.random.default_rng((study.seed, 1 + number))
            image, masks, boxes = render(patient, study, view, size, difficulty, rng=rng)
            out.append(
                {
                    "image": _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]),
                    "mask": _encode(".png", masks, [cv2.IMWRITE_PNG_COMPRESSION, 1]),
                    "boxes": boxes,
                    "text": report.text,
                    "findings": report.findings,
                    "impression": report.impression,
                    "label": study.label(),
                    "severity": _codes(study, "severity"),
                    "side": _codes(study, "side"),
                    "subject_id": patient.subject_id,
                    "study_id": study.study_id,
                    "prior_study_id": study.prior_study_id,
                    "image_id": f"{study.study_id}{view[0].lower()}",
                    "view_position": view,
                    "days": study.days,
                    "sex": "F" if patient.female else "M",
                    "age": study.age,
                    "qa": ask(study, view, rng=rng),
                }
            )
    return out


def render(
    patient: Patient,
    study: Study,
    view: str,
    size: int,
    difficulty: Difficulty,
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Takes one image of a study.

    Args:
        patient: whose study it is.
        study: the truth to be drawn.
        view: "PA" or "LATERAL".
        size: height and width in pixels.
        difficulty: how hard the findings are to see.
        rng: source of the exposure.

    Returns:
        The image [size, size] uint8; the masks [size, size] uint16, bit k = finding k; and the boxes,
        one per part, as {"bbox": (ymin, xmin, ymax, xmax) in [0, 1], "label": k}. A part that lies
        outside the image has neither.
    """
    right, left = patient.shape.base
    breathing = dataclasses.replace(patient.shape, base=(right + study.breath, left + study.breath))
    scene = anatomy.compose(disease.deform(breathing, study.findings), view, size)
    for kind, side, seed in study.mimics:
        disease.draw_mimic(scene, kind, side, seed)
    exposure = acquisition.sample_exposure(rng, view=view, spread=difficulty.spread)
    matrix = acquisition.pose_matrix(exposure, size)
    masks = np.zeros((size, size), np.uint16)
    boxes = []
    for finding in sorted(study.findings, key=disease.draw_order):
        before = scene.attenuation.copy()
        part_masks = disease.draw(scene, finding)
        scene.attenuation += (difficulty.opacity - 1.0) * (scene.attenuation - before)
        for part_mask in part_masks:
            mask = acquisition.warp_mask(part_mask, matrix)
            masks[mask] |= np.uint16(1 << finding.label)
            box = _box(mask)
            if box is not None:
                boxes.append({"bbox": box, "label": finding.label})
    return acquisition.expose(scene.attenuation, exposure, matrix), masks, boxes


def _box(mask: np.ndarray) -> np.ndarray | None:
    """(ymin, xmin, ymax, xmax) in [0, 1] of a boolean mask; None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return None
    edges = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return np.asarray(edges, np.float32) / np.float32(mask.shape[0])


def _codes(study: Study, field: str) -> np.ndarray:
    """`severity` or `side` of every finding, int8 [K]; 0 where it is absent."""
    out = np.zeros(len(L.LABEL_NAMES), np.int8)
    for finding in study.findings:
        out[finding.label] = getattr(finding, field)
    return out


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    ok, data = cv2.imencode(suffix, image, options)
    if not ok:
        raise RuntimeError(f"OpenCV cannot write {suffix} images on this machine")
    return data.tobytes()


def generate(
    seed: int,
    patients: range,
    size: int,
    *,
    difficulty: Difficulty = BENCHMARK,
    workers: int | None = None,
    chunk: int = 16,
) -> Iterator[Example]:
    """Examples of many patients, in order; neither `workers` nor `chunk` changes them.

    Args:
        seed: seed of the corpus.
        patients: numbers of the patients.
        size: height and width of the images in pixels.
        difficulty: how hard the findings are to see.
        workers: processes; by default one per available core, or none for less than 64 patients.
        chunk: patients per task of a process.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if len(patients) >= 64 else 1
    jobs = [(seed, index, size, difficulty) for index in patients]
    if workers <= 1:
        for job in jobs:
            yield from patient_examples(*job)
        return
    # "spawn": the parent may hold the threads of JAX, which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    # An executor, not a Pool: when a worker cannot start, a Pool starts the next one for ever.
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as executor:
        for examples in executor.map(_run_job, jobs, chunksize=chunk):
            yield from examples


def _start_worker() -> None:
    cv2.setNumThreads(1)  # one process per core already; results do not depend on it


def _run_job(job: tuple[int, int, int, Difficulty]) -> list[Example]:
    return patient_examples(*job)
