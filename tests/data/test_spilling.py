"""Without it every build over 1 GB, so every real one, would stop half-way and ask for TensorFlow."""

from __future__ import annotations

import errno
import json

import cv2
import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from medvlp_jax.data import build, pipeline, spilling
from medvlp_jax.errors import UserError


def test_bucket_gives_back_what_was_added(tmp_path) -> None:
    bucket = spilling.Bucket(tmp_path / "sub" / "bucket.tmp")
    assert list(bucket.read_values()) == []
    bucket.del_file()
    items = [(2**128 - 1, b"abc"), (0, b""), (2**64, bytes(range(256)) * 10)]
    for key, data in items:
        bucket.add(key, data)
    bucket.flush()
    assert list(bucket.read_values()) == items
    assert (len(bucket), bucket.size) == (3, 2563)
    bucket.del_file()
    assert list((tmp_path / "sub").iterdir()) == []


def test_order_is_that_of_a_build_in_memory(tmp_path) -> None:
    items = [(f"key{i}", f"data{i}".encode()) for i in range(300)]
    orders = []
    for limit in (1 << 20, 100):
        with spilling.spilling_without_tensorflow(limit):
            shuffler = shuffle.Shuffler(tmp_path, "salt")
            for key, data in items:
                shuffler.add(key, data)
            assert shuffler._in_memory == (limit > 100)
            orders.append([data for _, data in shuffler])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(data for _, data in items)
    assert list(tmp_path.iterdir()) == []
    assert shuffle._Bucket is not spilling.Bucket


@pytest.fixture
def folder(tmp_path):
    """Thirty images with texts."""
    folder = tmp_path / "src"
    folder.mkdir()
    rows = []
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        rows.append({"image": f"{i}.png", "text": f"text {i}", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_build_larger_than_its_memory(tmp_path, folder, monkeypatch) -> None:
    monkeypatch.setattr(spilling, "MEMORY_LIMIT", 5000)
    path = build.build_dataset("image_text_folder", tmp_path / "out", manual_dir=folder)
    source = pipeline.open_source("image_text_folder", "train", tmp_path / "out")
    assert sorted(e["text"] for e in source) == sorted(f"text {i}" for i in range(30))
    assert not list(path.rglob("*.tmp"))


def test_full_disk_is_explained(tmp_path, folder, monkeypatch) -> None:
    def full(self, key, data) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spilling, "MEMORY_LIMIT", 5000)
    monkeypatch.setattr(spilling.Bucket, "add", full)
    with pytest.raises(UserError, match=r"No space left on device; free some space"):
        build.build_dataset("image_text_folder", tmp_path / "out", manual_dir=folder)
    assert not list((tmp_path / "out").rglob("incomplete*"))
