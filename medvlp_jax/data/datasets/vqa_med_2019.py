"""VQA-Med 2019 of ImageCLEF: questions about modality, plane, organ and abnormality of radiology images."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="vqa_med_2019",
    builder="tfds_builders.vqa_med_2019.vqa_med_2019:VqaMed2019",
    description=(
        "15,292 questions about modality, plane, organ or abnormality of 4,200 radiology images, four per "
        "image in training and validation, one in test."
    ),
    modality="radiology, mixed",
    language="en",
    licence="public, see Zenodo",
    access="public: the three archives of https://zenodo.org/records/10499039, unpacked side by side",
    homepage="https://github.com/abachaa/VQA-Med-2019",
    citation=(
        "Ben Abacha et al., VQA-Med: overview of the medical visual question answering task at ImageCLEF "
        "2019, CLEF 2019 Working Notes"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"train": 3_200, "validation": 500, "test": 500},
    layout=(
        "ImageClef-2019-VQA-Med-Training/ and ImageClef-2019-VQA-Med-Validation/ with QAPairsByCategory/ and "
        "Train_images/ or Val_images/, and VQAMed2019Test/ with "
        "VQAMed2019_Test_Questions_w_Ref_Answers.txt and VQAMed2019_Test_Images/ (or .zip)"
    ),
)
