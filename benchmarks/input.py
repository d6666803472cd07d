"""Images per second of our input pipeline beside two of PyTorch: `./run.sh bench input`.

All make batches of 224 x 224 pixels from a random window and 128 tokens, on the same cores, in turns:

- ours: `train_iterator` on a dataset built with the default options from JPEG files of 512 pixels;
- field: `torch.utils.data.DataLoader` with PIL on those files and a tokenizer of transformers in the workers;
- tuned: a DataLoader with OpenCV on the bytes that our dataset stores, texts tokenised beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import input_peers, input_sources
from medvlp_jax.data import pipeline

SIZE, LENGTH, BATCH = 224, 128, 64
_WARMUP = 12  # batches before the clock starts: more than are prepared ahead


@dataclasses.dataclass
class Measured:
    """Results of one pipeline, one entry per round."""

    images_per_s: list[float] = dataclasses.field(default_factory=list)
    cpu_us_per_image: list[float] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, lowest and highest of both."""
        return {
            name: {"median": statistics.median(v), "low": min(v), "high": max(v)}
            for name, v in dataclasses.asdict(self).items()
        }


def cpu_seconds() -> float:
    """Processor time of this process and its children so far; of this process alone without /proc."""
    total = time.process_time()
    if not pathlib.Path("/proc/self/stat").exists():
        return total
    tick, own = os.sysconf("SC_CLK_TCK"), str(os.getpid())
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold blanks; after it: state, parent, ..., utime, stime.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if fields[1] == own:
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def run_for(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Images per second and processor microseconds per image."""
    for _ in range(_WARMUP):
        next(batches)
    images, start, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)["image"])
    took = time.perf_counter() - start
    return images / took, 1e6 * (cpu_seconds() - cpu) / images


def pipelines(folder: pathlib.Path, images: int, workers: int) -> dict[str, Iterator[Any]]:
    """The three iterators over the same images and texts."""
    files = input_sources.write_sources(folder / "source", images)
    dataset = input_sources.build_sources(folder / "source", folder / "built")
    config = {
        "dataset": dataset,
        "data_dir": str(folder / "built"),
        "global_batch_size": BATCH,
        "image": {
            "size": SIZE,
            "channels": 1,
            "mean": (0.5,),
            "std": (0.25,),
            "augment": {
                "crop": "random_resized",
                "crop_scale": input_peers.CROP_SCALE,
                "crop_ratio": input_peers.CROP_RATIO,
            },
        },
        "text": {"vocab_size": 4000, "max_length": LENGTH},
        "threads": workers,
    }
    tokenizer = pipeline.config_tokenizer(config)
    stored = list(pipeline.open_source(dataset, "train", folder / "built"))
    shared: dict[str, Any] = dict(size=SIZE, length=LENGTH, batch=BATCH, workers=workers)
    return {
        "ours": pipeline.train_iterator(config, tokenizer, seed=0),
        "field": input_peers.field_batches(files, tokenizer, **shared),
        "tuned": input_peers.tuned_batches(
            [example["image"] for example in stored],
            [example["text"] for example in stored],
            tokenizer,
            **shared,
        ),
    }


def compare(batches: dict[str, Iterator[Any]], rounds: int, seconds: float) -> dict[str, Measured]:
    """Runs all in turns, so that what else the machine does meets all of them; the first round only warms."""
    measured = {name: Measured() for name in batches}
    for number in range(rounds + 1):
        for name, iterator in batches.items():
            speed, cpu = run_for(iterator, seconds if number else seconds / 4)
            if number:
                measured[name].images_per_s.append(speed)
                measured[name].cpu_us_per_image.append(cpu)
    return measured


def ratios(measured: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """How many times as fast as each peer ours is, by the clock and by processor time per image: the
    median over the rounds, whose parts met about the same load."""
    ours = measured["ours"]
    return {
        name: {
            "wall": _median_ratio(ours.images_per_s, found.images_per_s),
            "cpu": _median_ratio(found.cpu_us_per_image, ours.cpu_us_per_image),
        }
        for name, found in measured.items()
        if name != "ours"
    }


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{report['machine']}, {report['cores']} cores, {report['images']} images, "
        f"{report['rounds']} rounds of {report['seconds']:g} s; median (lowest to highest)",
        f"{'pipeline':<10}{'images/s':>28}{'processor us/image':>32}{'ours is faster':>24}",
    ]
    for name, found in report["results"].items():
        cells = [
            f"{v['median']:,.0f} ({v['low']:,.0f} to {v['high']:,.0f})" for v in found.values()
        ]
        faster = report["ratios"].get(name)
        times = f"{faster['wall']:.2f} x (cpu {faster['cpu']:.2f} x)" if faster else ""
        lines.append(f"{name:<10}{cells[0]:>28}{cells[1]:>32}{times:>24}")
    return "\n".join(lines)


def machine() -> str:
    """Name of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench input", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=2048, help="drawn first, 20 a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="per pipeline and round")
    parser.add_argument("--workers", type=int, default=0, help="threads or processes; 0: the cores")
    parser.add_argument("--folder", default="", help="keeps the sources for a further run")
    parser.add_argument("--out", default="", metavar="FILE.json")
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(args.folder or scratch)
        batches = pipelines(folder, args.images, args.workers or cores or 1)
        measured = compare(batches, args.rounds, args.seconds)
        for iterator in batches.values():
            iterator.close()  # type: ignore[attr-defined]
    report = {
        "machine": machine(),
        "cores": cores,
        "images": args.images,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "batch": BATCH,
        "results": {name: found.summary() for name, found in measured.items()},
        "ratios": ratios(measured),
    }
    print(table(report))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
