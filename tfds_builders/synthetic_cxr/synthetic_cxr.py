"""TFDS builder of the synthetic chest radiographs; needs no TensorFlow and no download."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders.synthetic_cxr import generate, world
from tfds_builders.synthetic_cxr import labels as L

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass
class SyntheticCxrConfig(tfds.core.BuilderConfig):
    """Size of a corpus.

    Attributes:
        image_size: height and width in pixels.
        patients: number of patients in train, validation and test.
        seed: seed of the corpus; patients are numbered through over the splits.
        difficulty: how hard the findings are to see.
    """

    image_size: int = 256
    patients: tuple[int, int, int] = (1, 1, 1)
    seed: int = 0
    difficulty: world.Difficulty = world.BENCHMARK


class SyntheticCxr(tfds.core.GeneratorBasedBuilder):
    """Procedural chest radiographs with reports, labels, boxes, masks, questions and time lines."""

    # TFDS looks beside the code for checksums of downloads, of which there are none; the search would
    # import a package (importlib_resources) that TFDS does not declare as its dependency.
    code_path = None
    VERSION = tfds.core.Version(generate.VERSION)
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "First version.",
        "1.1.0": "Clearer devices and fractures; wording and difficulty settings; `quickstart`.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        SyntheticCxrConfig(
            name="default",
            description="3,000 / 300 / 700 images of 256 pixels, clear findings.",
            patients=(1455, 145, 340),
            difficulty=world.EASY,
        ),
        SyntheticCxrConfig(
            name="quickstart",
            description="For the quick start: 7,500 / 300 / 1,100 images of 128 pixels, gross findings.",
            image_size=128,
            patients=(4000, 160, 600),
            seed=4,
            difficulty=world.VIVID,
        ),
        SyntheticCxrConfig(
            name="tiny",
            description="For tests: a few dozen images of 128 pixels, clear findings.",
            image_size=128,
            patients=(36, 10, 26),
            seed=1,  # every finding occurs in train and in test
            difficulty=world.EASY,
        ),
        SyntheticCxrConfig(
            name="benchmark",
            description="To tell methods apart: 10,000 / 1,000 / 2,000 images, subtle to gross findings.",
            patients=(4700, 470, 940),
            seed=2,
        ),
        SyntheticCxrConfig(
            name="large",
            description="20,000 / 1,000 / 2,000 images, subtle to gross findings.",
            patients=(9400, 470, 940),
            seed=3,
        ),
    ]
    DEFAULT_CONFIG_NAME = "default"

    def _info(self) -> tfds.core.DatasetInfo:
        count = len(L.LABEL_NAMES)
        config = self._config()
        metadata = {
            "label_names": list(L.LABEL_NAMES),
            "severity_names": list(L.SEVERITIES),
            "side_names": list(L.SIDES),
            "patients": dict(zip(_SPLITS, config.patients, strict=True)),
            "dropped": {},
            "generator_version": generate.VERSION,
            "seed": config.seed,
            "difficulty": dataclasses.asdict(config.difficulty),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg"),
                    "mask": tfds.features.Image(
                        shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
                    ),
                    "boxes": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                            "label": np.int64,
                        }
                    ),
                    "text": tfds.features.Text(),
                    "findings": tfds.features.Text(),
                    "impression": tfds.features.Text(),
                    "label": tfds.features.Tensor(shape=(count,), dtype=np.int8),
                    "severity": tfds.features.Tensor(shape=(count,), dtype=np.int8),
                    "side": tfds.features.Tensor(shape=(count,), dtype=np.int8),
                    "subject_id": tfds.features.Text(),
                    "study_id": tfds.features.Text(),
                    "prior_study_id": tfds.features.Text(),
                    "image_id": tfds.features.Text(),
                    "view_position": tfds.features.Text(),
                    "days": np.int32,
                    "sex": tfds.features.Text(),
                    "age": np.int32,
                    "qa": tfds.features.Sequence(
                        {
                            "question": tfds.features.Text(),
                            "answer": tfds.features.Text(),
                            "answer_type": tfds.features.Text(),
                        }
                    ),
                }
            ),
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _config(self) -> SyntheticCxrConfig:
        config = self.builder_config
        if not isinstance(config, SyntheticCxrConfig):
            raise TypeError(f"expected a SyntheticCxrConfig, got {type(config).__name__}")
        return config

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        counts = self._config().patients
        ends = np.cumsum(counts)
        return {
            name: self._generate_examples(range(int(end) - count, int(end)))
            for name, count, end in zip(_SPLITS, counts, ends, strict=True)
        }

    def _generate_examples(self, patients: range) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self._config()
        examples = generate.generate(
            config.seed, patients, config.image_size, difficulty=config.difficulty
        )
        for example in examples:
            key = example["image_id"]
            encoded = {name: io.BytesIO(example[name]) for name in ("image", "mask")}
            yield key, {**example, **encoded}
