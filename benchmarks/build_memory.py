"""Peak memory of a dataset build, small and large: `python -m benchmarks.build_memory --studies 20000`.

Builds dummy studies in the layout of MIMIC-CXR, a tenth of them, then all, each in a process of its own. The
images are noise, which JPEG cannot shrink, so that the large build exceeds what is held in memory.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from medvlp_jax.data.spec import load_spec

_SIDE = 300  # pixels
_REPORT = "FINDINGS: Dummy lungs, number {study}.\n\nIMPRESSION: Invented.\n"


def write_studies(folder: pathlib.Path, studies: int) -> None:
    """Dummy files of MIMIC-CXR: one image and one report per study, two studies per patient.

    Args:
        folder: to be made.
        studies: their number.
    """
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
    cv2.imwrite(str(folder / "noise.jpg"), noise)
    metadata, splits, labels = [], [], []
    blank = dict.fromkeys(load_spec("mimic_cxr").label_names, "")
    for number in range(studies):
        subject, study = f"1{number // 2:07d}", f"5{number:07d}"
        ids = {"subject_id": subject, "study_id": study}
        place = pathlib.Path(f"p{subject[:2]}") / f"p{subject}" / f"s{study}"
        image = folder / "files" / place / f"image-{study}.jpg"
        report = folder / "mimic-cxr-reports" / "files" / place.with_suffix(".txt")
        for file in (image, report):
            file.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "noise.jpg", image)
        report.write_text(_REPORT.format(study=study))
        row = {"dicom_id": image.stem, **ids}
        shown = {"ViewPosition": "PA", "Rows": _SIDE, "Columns": _SIDE}
        metadata.append(
            {**row, **shown, "StudyDate": "21800506", "StudyTime": f"{number % 24:02d}"}
        )
        splits.append({**row, "split": "train"})
        labels.append({**ids, **blank})
    for name, rows in (("metadata", metadata), ("split", splits), ("chexpert", labels)):
        _write_table(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", rows)


def _write_table(file: pathlib.Path, rows: Sequence[Mapping[str, object]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def measure(folder: pathlib.Path, out: pathlib.Path) -> tuple[float, float, float]:
    """Builds in a process of its own.

    Returns:
        Peak resident memory in MB, seconds, and size of the dataset in MB.
    """
    command = [sys.executable, "-m", "medvlp_jax", "data", "build", "mimic_cxr"]
    command += ["--manual-dir", str(folder), "--data-dir", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the build failed with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    stored = sum(p.stat().st_size for p in out.rglob("*.array_record*"))
    return usage.ru_maxrss * unit / 1e6, seconds, stored / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line per build."""
    parser = argparse.ArgumentParser(description="peak memory of dataset builds")
    parser.add_argument("--studies", type=int, default=20_000, help="of the larger build")
    studies = parser.parse_args(argv).studies
    print(f"{'studies':>10}{'dataset MB':>12}{'peak RSS MB':>13}{'seconds':>9}")
    for count in (max(1, studies // 10), studies):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_studies(folder / "official", count)
            peak, seconds, stored = measure(folder / "official", folder / "out")
        print(f"{count:>10}{stored:>12.0f}{peak:>13.0f}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
