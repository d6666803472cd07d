"""MIMIC-CXR: chest radiographs and reports of Beth Israel Deaconess Medical Center."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="mimic_cxr",
    builder="tfds_builders.mimic_cxr.mimic_cxr:MimicCxr",
    description=(
        "377,110 chest radiographs of 227,835 studies with the full reports, the 14 findings of CheXpert "
        "(by labeler) and the official split."
    ),
    modality="chest X-ray",
    language="en",
    licence="PhysioNet credentialed",
    access=(
        "credentialed PhysioNet users: sign the agreement and download "
        "https://physionet.org/content/mimic-cxr-jpg/2.0.0/ (images, tables) and mimic-cxr-reports.zip of "
        "https://physionet.org/content/mimic-cxr/2.0.0/"
    ),
    homepage="https://physionet.org/content/mimic-cxr-jpg/2.0.0/",
    citation=(
        "Johnson et al., MIMIC-CXR, a de-identified publicly available database of chest radiographs with "
        "free-text reports, Scientific Data 6:317, 2019; Johnson et al., MIMIC-CXR-JPG, arXiv 1901.07042"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Enlarged Cardiomediastinum",
        "Fracture",
        "Lung Lesion",
        "Lung Opacity",
        "No Finding",
        "Pleural Effusion",
        "Pleural Other",
        "Pneumonia",
        "Pneumothorax",
        "Support Devices",
    ),
    expected_counts={"train": 368_960, "validation": 2_991, "test": 5_159},
    layout=(
        "mimic-cxr-2.0.0-metadata.csv.gz, mimic-cxr-2.0.0-split.csv.gz, mimic-cxr-2.0.0-chexpert.csv.gz, "
        "files/p10/p10000032/s50414267/*.jpg and so on, and "
        "mimic-cxr-reports/files/p10/p10000032/s50414267.txt and so on"
    ),
)
