"""SLAKE: English and Chinese questions about radiology images, with masks and boxes of organs."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="slake",
    builder="tfds_builders.slake.slake:Slake",
    description=(
        "14,028 questions in English and Chinese about 642 CT, MR and chest radiographs, with masks of 39 "
        "organs and tumours and boxes of findings and organs. The published split is by image."
    ),
    modality="radiology, mixed",
    language="en, zh",
    licence="CC-BY-4.0",
    access="public: https://www.med-vqa.com/slake or https://huggingface.co/datasets/BoKelvin/SLAKE",
    homepage="https://www.med-vqa.com/slake",
    citation=(
        "Liu et al., SLAKE: a semantically-labeled knowledge-enhanced dataset for medical visual question "
        "answering, ISBI 2021, arXiv 2102.09542"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"rows": 642},
    layout=(
        "train.json, validate.json (or validation.json), test.json, mask.txt and "
        "imgs/xmlab*/{source.jpg, mask.png, detection.json}"
    ),
)
