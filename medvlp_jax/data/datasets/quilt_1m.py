"""QUILT-1M: histopathology images with captions, mostly from educational videos."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="quilt_1m",
    builder="tfds_builders.quilt_1m.quilt_1m:Quilt1m",
    description=(
        "1 million pairs of histopathology images and captions: 802,148 of Quilt (frames of educational "
        "videos with what is said) and others of research papers, LAION and OpenPath."
    ),
    modality="histopathology",
    language="en",
    licence="research, on request",
    access=(
        "ask for access on https://zenodo.org/record/8239942 (512 x 512 pixels, 36 GB) or by the form on "
        "https://github.com/wisdomikezogwo/quilt1m (full size, 110 GB); the archives need not be unpacked"
    ),
    homepage="https://quilt1m.github.io/",
    citation=(
        "Ikezogwo et al., Quilt-1M: One Million Image-Text Pairs for Histopathology, NeurIPS 2023 Datasets "
        "and Benchmarks, arXiv 2306.11207"
    ),
    splits=("train", "validation", "test"),
    layout=(
        "quilt_1M_lookup.csv (columns image_path, caption, subset, split ...) and the images: "
        "images_part_*.zip, or unpacked in quilt_1m/, images/ or images_part_*/quilt_1m/"
    ),
)
