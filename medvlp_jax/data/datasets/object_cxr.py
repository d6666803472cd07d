"""Object-CXR: chest radiographs with and without foreign objects, outlined."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="object_cxr",
    builder="tfds_builders.object_cxr.object_cxr:ObjectCxr",
    description=(
        "9,000 frontal chest radiographs of township hospitals in China, half of them with foreign objects "
        "that radiologists outlined as rectangles, ellipses or polygons. The test set was never published."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="CC BY-NC 4.0",
    access=(
        "public: train.csv, train.zip, dev.csv and dev.zip of "
        "https://academictorrents.com/details/fdc91f11d7010f7259a05403fc9d00079a09f5d5"
    ),
    homepage="https://jfhealthcare.github.io/object-CXR/",
    citation="JF Healthcare, Object-CXR: automatic detection of foreign objects on chest X-rays, 2020",
    splits=("train", "validation", "test"),
    label_names=("Foreign object",),
    expected_counts={"train": 8_000, "validation": 1_000},
    layout="train.csv, dev.csv, train/*.jpg and dev/*.jpg",
)
