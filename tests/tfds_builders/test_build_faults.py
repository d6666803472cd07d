"""Without these, a killed build, a full disk or one bad file could leave a dataset that looks whole."""

from __future__ import annotations

import hashlib
import json
import pathlib
import signal
import subprocess
import sys

import pytest

from medvlp_jax.data import build
from medvlp_jax.data.source import open_source
from medvlp_jax.data.spec import all_specs
from medvlp_jax.errors import UserError

KILLED = """
import os, signal, sys
from medvlp_jax.data import spilling
from tfds_builders import manual_builder
spilling.MEMORY_LIMIT = 10_000  # so that some examples are on the disk already
real, seen = manual_builder.read_image, []
def read(folder, name):
    seen.append(name)
    if len(seen) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(folder, name)
manual_builder.read_image = read
"""
LITTLE = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
MAIN = "\nfrom medvlp_jax.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"


def run_build(before: str, folder: pathlib.Path, out: pathlib.Path) -> subprocess.CompletedProcess:
    """`data build nih_cxr14` in a process of its own, after some code."""
    arguments = ["data", "build", "nih_cxr14", "--manual-dir", str(folder), "--data-dir", str(out)]
    command = [sys.executable, "-c", before + MAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Path -> SHA-256 of every file."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_killed_build_starts_again_and_gives_the_same_files(tmp_path, save_nih) -> None:
    save_nih(tmp_path / "nih", 80)
    whole = build.build_dataset("nih_cxr14", tmp_path / "whole", manual_dir=tmp_path / "nih")
    result = run_build(KILLED, tmp_path / "nih", tmp_path / "out")
    assert result.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "out").rglob("incomplete.*_1.0.0")
    assert list(left.rglob("*.tmp*"))  # examples of the killed build
    with pytest.raises(UserError, match="is not built"):
        open_source("nih_cxr14", "train", tmp_path / "out")
    again = build.build_dataset("nih_cxr14", tmp_path / "out", manual_dir=tmp_path / "nih")
    assert not left.exists()
    assert contents(again) == contents(whole)
    assert contents(again.parent) == contents(whole.parent)


def assert_full(result: subprocess.CompletedProcess, out: pathlib.Path, reason: str) -> None:
    assert result.returncode == 2, result.stderr
    assert f"nih_cxr14 could not be written to {out}: {reason}; free some space" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(out.rglob("incomplete*"))
    assert not list(out.rglob("*.array_record*"))


def test_files_that_may_not_grow(tmp_path, save_nih) -> None:
    save_nih(tmp_path / "nih", 150)
    result = run_build(LITTLE, tmp_path / "nih", tmp_path / "out")
    assert_full(result, tmp_path / "out", "File too large")


@pytest.mark.parametrize("limit", ["1 << 28", "10_000"])
def test_full_disk(tmp_path, save_nih, limit) -> None:
    """A disk of 300 kB: the shards do not fit, or the examples that wait for them do not."""
    save_nih(tmp_path / "nih", 150)
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        code = f"import sys; from medvlp_jax.data import spilling; spilling.MEMORY_LIMIT = {limit}"
        assert_full(run_build(code, tmp_path / "nih", out), out, "No space left on device")
    finally:
        subprocess.run(["umount", str(out)], check=True)
    # The same folder on a disk with space: the build is whole.
    build.build_dataset("nih_cxr14", out, manual_dir=tmp_path / "nih")


def test_one_damaged_image_in_a_thousand(tmp_path, save_nih) -> None:
    names = save_nih(tmp_path / "nih", 1000)
    damaged = tmp_path / "nih" / "images_001" / "images" / names[501]
    damaged.write_bytes(damaged.read_bytes()[:200])
    folder = build.build_dataset("nih_cxr14", tmp_path / "out", manual_dir=tmp_path / "nih")
    lines = (folder.parent / "rejected.jsonl").read_text().splitlines()
    (rejected,) = [json.loads(line) for line in lines]
    assert rejected["row"] == names[501]
    assert rejected["image"].endswith(names[501])
    assert rejected["reason"]
    splits = ("train", "validation", "test")
    sources = [open_source("nih_cxr14", split, tmp_path / "out") for split in splits]
    assert sum(len(source) for source in sources) == 999
    assert sources[0].metadata["dropped"]["rejected"] == 1


def test_unreadable_files_are_rejected_or_missing(tmp_path, save_nih) -> None:
    names = save_nih(tmp_path / "nih", 20)
    images = tmp_path / "nih" / "images_001" / "images"
    (images / names[0]).unlink()
    (images / names[0]).mkdir()
    (tmp_path / "outside.png").write_bytes((images / names[1]).read_bytes())
    (images / names[1]).unlink()
    (images / names[1]).symlink_to(tmp_path / "outside.png")
    options = {"max_rejected": "0.2"}
    folder = build.build_dataset(
        "nih_cxr14", tmp_path / "out", manual_dir=tmp_path / "nih", options=options
    )
    lines = [json.loads(t) for t in (folder.parent / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["row"]: line["reason"] for line in lines}
    assert reasons[names[0]] == "is not a file"
    assert reasons[names[1]] == "path leads out of the folder; copy the file into it"
    (images / names[2]).unlink()
    (images / names[2]).symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=rf"1 of 20 images .*{names[2]}"):
        build.build_dataset("nih_cxr14", tmp_path / "other", manual_dir=tmp_path / "nih")


@pytest.mark.parametrize("name", [s.name for s in all_specs() if s.needs_manual_dir])
def test_every_builder_refuses_a_wrong_folder(tmp_path, name) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for wrong in ("empty", "file", "none"):
        with pytest.raises(UserError) as raised:
            build.build_dataset(name, tmp_path / "out", manual_dir=tmp_path / wrong)
        assert str(tmp_path / wrong) in str(raised.value)
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def test_a_split_without_a_usable_image_is_an_error_that_says_so(tmp_path, save_nih) -> None:
    folder = tmp_path / "nih"
    for name in save_nih(folder, 20):
        (folder / "images_001" / "images" / name).write_bytes(b"not an image")
    options = {"max_rejected": "1"}
    with pytest.raises(UserError, match=r"none of the \d+ images of split \w+ can be used"):
        build.build_dataset("nih_cxr14", tmp_path / "out", manual_dir=folder, options=options)
