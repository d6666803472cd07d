"""MS-CXR: phrases of reports with boxes by radiologists, on images of MIMIC-CXR."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="ms_cxr",
    builder="tfds_builders.ms_cxr.ms_cxr:MsCxr",
    description=(
        "1,162 pairs of a chest radiograph of MIMIC-CXR and a phrase, with boxes by radiologists, for eight "
        "findings: a benchmark of phrase grounding. Leave its patients out of pretraining."
    ),
    modality="chest X-ray",
    language="en",
    licence="PhysioNet credentialed",
    access=(
        "credentialed PhysioNet users: sign the agreements and download "
        "https://physionet.org/content/ms-cxr/1.1.0/ (the table) and the images of "
        "https://physionet.org/content/mimic-cxr-jpg/2.0.0/"
    ),
    homepage="https://physionet.org/content/ms-cxr/1.1.0/",
    citation=(
        "Boecking et al., Making the most of text semantics to improve biomedical vision-language "
        "processing, ECCV 2022, arXiv 2204.09817"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Lung Opacity",
        "Pleural Effusion",
        "Pneumonia",
        "Pneumothorax",
    ),
    layout=(
        "MS_CXR_Local_Alignment_v1.1.0.csv (or .json, or v1.0.0) and the images "
        "files/p10/p10233088/s54276838/*.jpg and so on of MIMIC-CXR-JPG, of which those that the table lists "
        "are enough"
    ),
)
