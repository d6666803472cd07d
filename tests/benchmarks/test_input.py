"""Without these the benchmark could compare pipelines that do different work, or divide the wrong way."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest

from benchmarks import input as bench
from benchmarks import input_sources


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder and the three iterators, over 64 small sources."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_sources, "SOURCE_SIZE", 256)
        patch.setattr(input_sources, "_PATIENTS", 40)
        patch.setattr(bench, "BATCH", 8)
        yield folder, bench.pipelines(folder, images=64, workers=1)


@pytest.mark.filterwarnings("ignore")  # torch warns about its own worker processes
def test_all_three_make_the_same_kind_of_batch(made) -> None:
    _, batches = made
    ours, field, tuned = (next(batches[name]) for name in ("ours", "field", "tuned"))
    assert ours["image"].shape == (8, 224, 224, 1) == tuple(tuned["image"].shape)
    assert tuple(field["image"].shape) == (8, 3, 224, 224)
    for batch in (ours, field, tuned):
        assert tuple(batch["input_ids"].shape) == (8, 128)
        assert int(np.asarray(batch["attention_mask"]).sum(axis=1).min()) > 10
    # The same images: the spread of grey values agrees, in units of [0, 1].
    spread = [
        ours["image"].std() / 255,
        float(field["image"].std()) * 0.225,
        float(tuned["image"].float().std()) / 255,
    ]
    assert max(spread) < 1.3 * min(spread)
    for iterator in batches.values():
        iterator.close()


def test_sources_are_drawn_once(made) -> None:
    folder, _ = made
    files = input_sources.write_sources(folder / "source", 64)
    assert len(files) == len({file for file, _ in files}) == 64
    before = files[0][0].stat().st_mtime_ns
    assert input_sources.write_sources(folder / "source", 64)[0][0].stat().st_mtime_ns == before
    assert all(len(text) > 40 for _, text in files)


def test_run_for_counts_images_and_processor_time(monkeypatch) -> None:
    def slow():
        while True:
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass
            yield {"image": np.zeros((4, 2))}

    monkeypatch.setattr(bench, "_WARMUP", 1)
    speed, cpu = bench.run_for(slow(), seconds=0.2)
    assert 20 < speed < 450  # 4 images in 10 ms
    assert 2000 < cpu < 6000


def test_rounds_are_taken_in_turns(monkeypatch) -> None:
    calls = []
    speeds = itertools.count(100, 10)

    def run(iterator, seconds):
        calls.append((iterator, seconds))
        return float(next(speeds)), 5.0

    monkeypatch.setattr(bench, "run_for", run)
    results = bench.compare({"ours": "a", "field": "b"}, rounds=3, seconds=8)  # type: ignore
    assert calls == [("a", 2.0), ("b", 2.0), *[("a", 8), ("b", 8)] * 3]
    assert results["ours"].summary()["images_per_s"] == {"median": 140, "low": 120, "high": 160}


def test_ratios_and_table() -> None:
    measured = {
        "ours": bench.Measured([4000, 2000, 8000], [300, 300, 300]),
        "field": bench.Measured([500, 250, 800], [2400, 2700, 2100]),
        "tuned": bench.Measured([5000, 4000, 8000], [240, 240, 600]),
    }
    ratios = bench.ratios(measured)  # of the rounds 8, 8, 10 and 0.8, 0.5, 1
    assert ratios == {"field": {"wall": 8, "cpu": 8}, "tuned": {"wall": 0.8, "cpu": 0.8}}
    report = {"machine": "M", "cores": 2, "images": 9, "rounds": 3, "seconds": 4.0}
    results = {name: found.summary() for name, found in measured.items()}
    text = bench.table({**report, "results": results, "ratios": ratios})
    assert "4,000 (2,000 to 8,000)" in text
    assert "8.00 x (cpu 8.00 x)" in text
    json.dumps(results)
