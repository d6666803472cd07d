"""Where training metrics go: stdout, `metrics.jsonl`, TensorBoard event files, the progress bar."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from medvlp_jax.parallel.distributed import is_main_process


class MetricLog:
    """Writes scalar metrics of one run; only the main process writes."""

    def __init__(
        self, workdir: str | pathlib.Path, *, start_step: int = 0, tensorboard: bool = True
    ):
        """Opens the files, and drops rows a resumed run is going to write again.

        Args:
            workdir: folder of the run.
            start_step: first step of this process; JSONL rows after it are removed.
            tensorboard: also write event files under `workdir/tensorboard`.
        """
        self._active = is_main_process()
        self._file = None
        self._board = None
        if not self._active:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        truncate_rows(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter  # 0.1 s of import that evaluation does not need

            self._board = SummaryWriter(
                str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row `{"step": ..., "time": ..., key: value}`; non-finite values become null."""
        if not self._active or self._file is None:
            return
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        row.update({k: v if math.isfinite(v) else None for k, v in metrics.items()})
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in metrics.items():
                if math.isfinite(value):
                    self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def truncate_rows(path: pathlib.Path, last_step: int) -> None:
    """Removes the rows of steps after `last_step` (and a half-written last line) from a JSONL file."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process was killed
        if row.get("step", 0) <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`."""
    return [
        json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    ]


class Progress:
    """Progress bar with ETA and images/s on a terminal, one line per report elsewhere."""

    def __init__(self, total: int, *, start: int = 0, unit_size: int = 1, label: str = "train"):
        """Args: total steps, first step, examples per step (for images/s), label in front."""
        self._total, self._unit, self._label = total, unit_size, label
        self._active = is_main_process()
        self._bar = None
        self._last_step, self._last_time = start, time.perf_counter()
        if self._active and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, desc=label, unit="step", dynamic_ncols=True
            )

    def advance(self) -> None:
        """One step done."""
        if self._bar is not None:
            self._bar.update(1)

    def rate(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._last_time, 1e-9)
        rate = (step - self._last_step) / elapsed
        self._last_step, self._last_time = step, now
        return rate

    def report(self, step: int, metrics: Mapping[str, float], rate: float) -> None:
        """Shows the loss, images/s and the time left."""
        if not self._active:
            return
        left = (self._total - step) / rate if rate > 0 else float("inf")
        text = f"loss {metrics['loss']:.4f}  {rate * self._unit:.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            eta = f"{left:.0f} s" if math.isfinite(left) else "?"
            print(f"{self._label} {step}/{self._total}  {text}  ETA {eta}", flush=True)

    def message(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def skip_time(self) -> None:
        """Restarts the clock, so that evaluation and saving do not count in images/s."""
        self._last_time = time.perf_counter()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
