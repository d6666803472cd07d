"""A small dataset whose images, texts, labels and patients tell which example they belong to."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from medvlp_jax.data import build, pipeline, text
from medvlp_jax.data.spilling import spilling_without_tensorflow
from tfds_builders.stored_volumes import volume_features, volume_values

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


DEPTHS = (9, 4, 1, 6)
"""Slices of the volumes."""


class Volumes(tfds.core.GeneratorBasedBuilder):
    """Volume v has DEPTHS[v] slices; slice s is a gradient on the grey 20 v + 10 + s."""

    code_path = None
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {**volume_features(quality=0), "text": text, "image_id": text}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self) -> Any:
        for volume, depth in enumerate(DEPTHS):
            grey = np.array([slice_grey(volume, number) for number in range(depth)], np.uint8)
            pixels = np.arange(40, dtype=np.uint8) + np.tile(grey[:, None, None], (1, 40, 1))
            values = volume_values(pixels, (1.0, 1.0, 1.0), quality=0)
            yield str(volume), {**values, "text": "Volume.", "image_id": str(volume)}


def slice_grey(volume: int, number: int) -> int:
    return 20 * volume + 10 + number


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


@pytest.fixture(scope="session")
def built(small) -> pathlib.Path:
    """The same data directory with `synthetic_cxr/tiny` beside it."""
    build.build_dataset("synthetic_cxr/tiny", small)
    return pathlib.Path(small)


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


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("volumes")
    with spilling_without_tensorflow():
        Volumes(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


@pytest.fixture
def of_volumes(config, volumes) -> dict:
    return {
        **config,
        "dataset": "volumes",
        "data_dir": str(volumes),
        "image": {**config["image"], "frames": 4},
    }
