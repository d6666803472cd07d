"""VinDr-CXR: chest radiographs of two Vietnamese hospitals with findings and boxes by radiologists."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="vindr_cxr",
    builder="tfds_builders.vindr_cxr.vindr_cxr:VindrCxr",
    description=(
        "18,000 postero-anterior chest radiographs with 22 findings in boxes and 6 labels of the whole "
        "image: by three radiologists each in training, by the consensus of five in the test set."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="PhysioNet credentialed",
    access=(
        "credentialed PhysioNet users: sign the agreement and download "
        "https://physionet.org/content/vindr-cxr/1.0.0/"
    ),
    homepage="https://physionet.org/content/vindr-cxr/1.0.0/",
    citation=(
        "Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations, "
        "Scientific Data 9:429, 2022, arXiv 2012.15029"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Aortic enlargement",
        "Atelectasis",
        "Calcification",
        "Cardiomegaly",
        "Clavicle fracture",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Enlarged PA",
        "ILD",
        "Infiltration",
        "Lung Opacity",
        "Lung cavity",
        "Lung cyst",
        "Mediastinal shift",
        "Nodule/Mass",
        "Pleural effusion",
        "Pleural thickening",
        "Pneumothorax",
        "Pulmonary fibrosis",
        "Rib fracture",
        "Other lesion",
        "COPD",
        "Lung tumor",
        "Pneumonia",
        "Tuberculosis",
        "Other disease",
        "No finding",
    ),
    expected_counts={"train": 15_000, "test": 3_000},
    layout=(
        "annotations/annotations_train.csv, annotations_test.csv, image_labels_train.csv and "
        "image_labels_test.csv, train/*.dicom and test/*.dicom"
    ),
)
