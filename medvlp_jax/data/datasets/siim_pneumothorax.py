"""SIIM-ACR Pneumothorax Segmentation: radiographs with masks."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="siim_pneumothorax",
    builder="tfds_builders.siim_pneumothorax.siim_pneumothorax:SiimPneumothorax",
    description=(
        "12,047 frontal chest radiographs with masks of pneumothorax (10,675 with the table of the first "
        "stage)."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="SIIM-ACR, non-commercial",
    access=(
        "accept the rules and download "
        "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation (images and train-rle.csv; "
        "stage_2_train.csv labels the images of both folders)"
    ),
    homepage="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    citation="SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019",
    splits=("train", "validation", "test"),
    label_names=("Pneumothorax",),
    expected_counts={"rows": 12_047},
    layout=(
        "stage_2_train.csv or train-rle.csv (columns ImageId, EncodedPixels) and dicom-images-train/, "
        "dicom-images-test/ with .dcm files at any depth"
    ),
)
