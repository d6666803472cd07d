"""Without these, a dataset built on a cluster could differ from the one built on a workstation."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from medvlp_jax.__main__ import main
from medvlp_jax.data import build
from medvlp_jax.data.source import open_source
from medvlp_jax.data.spec import load_spec
from medvlp_jax.errors import UserError
from tfds_builders.nih_cxr14.nih_cxr14 import NihCxr14

# Beam still needs protobuf 6, which TFDS asks the old way.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
IMAGES = [f"{patient:08d}_{number:03d}.png" for patient in range(1, 76) for number in range(2)]


@pytest.fixture
def beam():
    """Apache Beam, where the extra `beam` is installed."""
    return pytest.importorskip("apache_beam", reason="needs pip install -e '.[beam]'")


@pytest.fixture
def nih(tmp_path, save_nih) -> pathlib.Path:
    """150 images of 75 patients in the official layout of ChestX-ray14; more than two chunks."""
    assert save_nih(tmp_path / "nih", 150) == IMAGES
    return tmp_path / "nih"


def examples(name: str, data_dir: pathlib.Path) -> dict[str, list[dict]]:
    """Split -> examples in stored order."""
    return {split: list(open_source(name, split, data_dir)) for split in load_spec(name).splits}


def assert_same(left: dict[str, list[dict]], right: dict[str, list[dict]]) -> None:
    assert {s: len(rows) for s, rows in left.items()} == {s: len(r) for s, r in right.items()}
    for split, rows in left.items():
        for one, two in zip(rows, right[split], strict=True):
            assert one.keys() == two.keys()
            for key in one:
                np.testing.assert_equal(one[key], two[key], err_msg=f"{split} {key}")


def test_same_dataset_as_without_beam(beam, nih, tmp_path) -> None:
    (nih / "images_001" / "images" / IMAGES[5]).write_bytes(b"damaged")
    options = {"max_rejected": "0.1"}
    plain = build.build_dataset("nih_cxr14", tmp_path / "a", manual_dir=nih, options=options)
    parallel = build.build_dataset(
        "nih_cxr14", tmp_path / "b", manual_dir=nih, options=options, beam="DirectRunner"
    )
    assert_same(examples("nih_cxr14", tmp_path / "a"), examples("nih_cxr14", tmp_path / "b"))
    sources = [open_source("nih_cxr14", "train", tmp_path / d) for d in "ab"]
    assert sources[0].metadata == sources[1].metadata
    assert sources[1].metadata["dropped"]["rejected"] == 1
    rejected = [(p.parent / "rejected.jsonl").read_text() for p in (plain, parallel)]
    assert rejected[0] == rejected[1]
    assert IMAGES[5] in rejected[1]
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (plain, parallel)]
    assert names[0] == names[1]  # no working files are left


def test_reports_are_read_on_the_workers(beam, tmp_path, save_image, save_table) -> None:
    folder = tmp_path / "mimic"
    rows = [(f"1000000{i}", f"5000000{i}", f"aa-{i}") for i in range(3)]
    for subject, study, image in rows:
        place = f"p10/p{subject}/s{study}"
        save_image(folder / "files" / place / f"{image}.jpg")
        report = folder / "mimic-cxr-reports" / "files" / f"{place}.txt"
        report.parent.mkdir(parents=True)
        report.write_text(f"FINDINGS: Dummy study {study}.\n\nIMPRESSION: Invented {image}.\n")
    ids = [dict(zip(("subject_id", "study_id", "dicom_id"), row, strict=True)) for row in rows]
    more = {"ViewPosition": "PA", "StudyDate": "21800506", "StudyTime": "093000", "Rows": 40}
    save_table(
        folder / "mimic-cxr-2.0.0-metadata.csv.gz", [{**r, **more, "Columns": 50} for r in ids]
    )
    splits = ("train", "validate", "test")
    save_table(
        folder / "mimic-cxr-2.0.0-split.csv.gz",
        [{**r, "split": s} for r, s in zip(ids, splits, strict=True)],
    )
    blank = dict.fromkeys(load_spec("mimic_cxr").label_names, "")
    save_table(
        folder / "mimic-cxr-2.0.0-chexpert.csv.gz",
        [{"subject_id": s, "study_id": t, **blank} for s, t, _ in rows],
    )
    build.build_dataset("mimic_cxr", tmp_path / "a", manual_dir=folder)
    build.build_dataset("mimic_cxr", tmp_path / "b", manual_dir=folder, beam="DirectRunner")
    found = examples("mimic_cxr", tmp_path / "b")
    assert found["test"][0]["findings"] == "Dummy study 50000002."
    assert_same(examples("mimic_cxr", tmp_path / "a"), found)


def test_too_many_damaged_images_stop_a_parallel_build(beam, nih, tmp_path) -> None:
    for name in IMAGES[:5]:
        (nih / "images_001" / "images" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"2 unusable images, more than the 1 allowed"):
        build.build_dataset("nih_cxr14", tmp_path / "out", manual_dir=nih, beam="DirectRunner")
    assert not list((tmp_path / "out").rglob("incomplete*"))
    assert not list((tmp_path / "out").rglob("*.array_record*"))


@pytest.mark.slow  # starts worker processes
def test_several_processes(beam, nih, tmp_path) -> None:
    build.build_dataset("nih_cxr14", tmp_path / "a", manual_dir=nih)
    build.build_dataset(
        "nih_cxr14",
        tmp_path / "b",
        manual_dir=nih,
        beam="DirectRunner",
        beam_options=["direct_num_workers=2", "direct_running_mode=multi_processing"],
    )
    assert_same(examples("nih_cxr14", tmp_path / "a"), examples("nih_cxr14", tmp_path / "b"))


@pytest.mark.slow  # starts a job service and a pool of workers
def test_workers_of_another_machine(beam, nih, tmp_path) -> None:
    """The protocol of Spark and Flink clusters, with Beam's own job service in their place."""
    pool, service = (_free_port() for _ in range(2))
    commands = (
        ("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"),
        ("apache_beam.runners.portability.local_job_service_main", f"--port={service}"),
    )
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # the pool starts `python`
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, "PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        _wait_for(pool, service)
        build.build_dataset(
            "nih_cxr14",
            tmp_path / "b",
            manual_dir=nih,
            beam="PortableRunner",
            beam_options=[
                f"job_endpoint=localhost:{service}",
                "environment_type=EXTERNAL",
                f"environment_config=localhost:{pool}",
            ],
        )
    finally:
        for process in running:
            process.terminate()
            process.wait()
    build.build_dataset("nih_cxr14", tmp_path / "a", manual_dir=nih)
    assert_same(examples("nih_cxr14", tmp_path / "a"), examples("nih_cxr14", tmp_path / "b"))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _wait_for(*ports: int) -> None:
    for port in ports:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                break
            time.sleep(0.1)


def test_what_cannot_leave_the_process_is_said(beam, nih, tmp_path, monkeypatch) -> None:
    real = NihCxr14.read_corpus

    def read_corpus(self, folder):
        self._lock = threading.Lock()
        return real(self, folder)

    monkeypatch.setattr(NihCxr14, "read_corpus", read_corpus)
    with pytest.raises(UserError, match=r"nih_cxr14 reads .* only one process .*without --beam"):
        build.build_dataset("nih_cxr14", tmp_path / "o", manual_dir=nih, beam="DirectRunner")
    assert not list((tmp_path / "o").rglob("incomplete*"))


def test_mistakes_are_explained(beam, nih, tmp_path) -> None:
    for runner, options, message in (
        ("", ["a=b"], "--beam-option needs --beam"),
        ("DirectRunner", ["workers"], "--beam-option workers: expected KEY=VALUE"),
        ("NoRunner", [], r"--beam NoRunner: .*DirectRunner"),
        ("no.such.Runner", [], r"--beam no\.such\.Runner: No module"),
    ):
        with pytest.raises(UserError, match=message):
            build.build_dataset(
                "nih_cxr14", tmp_path / "o", manual_dir=nih, beam=runner, beam_options=options
            )
    with pytest.raises(UserError, match="synthetic_cxr is not built with Beam"):
        build.build_dataset("synthetic_cxr/tiny", tmp_path / "o", beam="DirectRunner")


def test_command_line_takes_runner_and_options(nih, tmp_path, capsys) -> None:
    command = ["data", "build", "nih_cxr14", "--manual-dir", str(nih), "--data-dir", str(tmp_path)]
    assert main([*command, "--beam-option", "a=b"]) == 2
    assert "--beam-option needs --beam RUNNER" in capsys.readouterr().err
    if importlib.util.find_spec("apache_beam"):
        assert main([*command, "--beam", "DirectRunner", "--beam-option", "x"]) == 2
        assert "--beam-option x: expected KEY=VALUE" in capsys.readouterr().err


def test_beam_is_an_extra(nih, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tfds_builders.beam_examples", raising=False)
    with pytest.raises(UserError, match=r"--beam needs Apache Beam: pip install"):
        build.build_dataset("nih_cxr14", tmp_path / "o", manual_dir=nih, beam="DirectRunner")


def test_a_builder_takes_along_what_it_has_read(nih, tmp_path) -> None:
    builder = NihCxr14(config=NihCxr14.make_config(nih, {}), data_dir=tmp_path / "out")
    builder._archives = {"a.zip": 3}  # type: ignore[attr-defined] # as a `read_corpus` may do
    assert builder.info.name == "nih_cxr14"
    other = pickle.loads(pickle.dumps(builder))
    assert other._archives == {"a.zip": 3}
    assert other._settings == builder._settings
    assert "info" not in vars(other)
