"""VQA-RAD: questions of clinicians about radiology images, with answers."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="vqa_rad",
    builder="tfds_builders.vqa_rad.vqa_rad:VqaRad",
    description=(
        "2,248 questions of clinicians about 314 radiology images, with answers. The published split asks "
        "about 202 images in training and in test; the default split here is by image."
    ),
    modality="radiology, mixed",
    language="en",
    licence="CC0-1.0",
    access=(
        "public: VQA_RAD Dataset Public.json and VQA_RAD Image Folder of https://osf.io/89kps/"
    ),
    homepage="https://osf.io/89kps/",
    citation=(
        "Lau et al., A dataset of clinically generated visual questions and answers about radiology "
        "images, Scientific Data 5:180251, 2018"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"rows": 314},
    layout="VQA_RAD Dataset Public.json and VQA_RAD Image Folder/synpic*.jpg",
)
