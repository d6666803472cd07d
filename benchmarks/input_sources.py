"""What `bench input` reads: radiographs of 512 pixels with reports, as files, and built as a dataset."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib

from medvlp_jax.data import build
from tfds_builders.synthetic_cxr import generate, world

SOURCE_SIZE = 512
_SEED = 7
_PATIENTS = 128  # drawn at once, about two images each


def write_sources(folder: pathlib.Path, number: int) -> list[tuple[pathlib.Path, str]]:
    """Writes JPEG files and their table, unless they are there.

    Args:
        folder: gets `images/` and `metadata.jsonl`.
        number: images.

    Returns:
        File and report of each image.
    """
    table = folder / "metadata.jsonl"
    if not table.exists():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, str]] = []
        first = 0
        while len(rows) < number:
            block = range(first, first + _PATIENTS)
            for example in generate.generate(_SEED, block, SOURCE_SIZE, difficulty=world.EASY):
                name = f"images/{example['image_id']}.jpg"
                (folder / name).write_bytes(example["image"])
                fields = ("text", "findings", "impression", "subject_id", "study_id")
                rows.append(
                    {"image": name, "split": "train", **{field: example[field] for field in fields}}
                )
            first += _PATIENTS
        del rows[number:]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return [(folder / row["image"], row["text"]) for row in rows]


def build_sources(folder: pathlib.Path, data_dir: pathlib.Path) -> str:
    """Builds the files as a user would, with the default options.

    Returns:
        Name of the dataset.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        build.build_dataset(
            "image_text_folder", data_dir, manual_dir=folder, options={"name": "bench_input"}
        )
    return "image_text_folder/bench_input"
