"""A small dataset whose images, texts, labels and patients tell which example they belong to."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
import pytest

from medvlp_jax.data import build, pipeline, text

TRAIN, VALIDATION, TEST = 23, 10, 5


def grey_of(number: int) -> int:
    """Grey value of image `number`: far enough apart to survive JPEG."""
    return 10 + 6 * number


def write_small_folder(folder: pathlib.Path) -> None:
    """Images of one grey value; reports with two sections; one patient per two images."""
    folder.mkdir()
    rows = []
    for number in range(TRAIN + VALIDATION + TEST):
        name = f"{number:02d}.png"
        cv2.imwrite(str(folder / name), np.full((48, 40), grey_of(number), np.uint8))
        split = "train" if number < TRAIN else "val" if number < TRAIN + VALIDATION else "test"
        rows.append(
            {
                "image": name,
                "text": f"FINDINGS: Grey number {number}. No effusion.\nIMPRESSION: Shade {number}.",
                "patient_id": f"{split}-{number // 2}",
                "split": split,
                "even": str(int(number % 2 == 0)),
                "rare": {0: "1", 1: "-1", 2: ""}.get(number, "0"),
            }
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> str:
    """Data directory with the dataset `image_text_folder/small`."""
    root = tmp_path_factory.mktemp("small_data")
    write_small_folder(root / "small")
    build.build_dataset(
        "image_text_folder",
        root / "built",
        manual_dir=root / "small",
        options={"label_columns": "even,rare", "quality": "0"},
    )
    return str(root / "built")


@pytest.fixture
def config(small) -> dict:
    """`config.data` of the small dataset; 5 steps of 4 per epoch leave 3 examples over."""
    return {
        "dataset": "image_text_folder",
        "data_dir": small,
        "global_batch_size": 4,
        "image": {"size": 32, "channels": 1, "mean": (0.5,), "std": (0.5,)},
        "text": {"vocab_size": 300, "max_length": 24},
        "threads": 0,
    }


@pytest.fixture
def tokenizer(config) -> text.Tokenizer:
    """WordPiece trained on the small dataset's train split."""
    return pipeline.config_tokenizer(config)
