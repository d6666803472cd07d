"""ChestX-Det10: images of NIH ChestX-ray14 with boxes of ten findings."""

from __future__ import annotations

from medvlp_jax.data.datasets.nih_cxr14 import SPEC as NIH_CXR14
from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="chestx_det10",
    builder="tfds_builders.chestx_det10.chestx_det10:ChestxDet10",
    description=(
        "3,543 frontal chest radiographs of NIH ChestX-ray14 with boxes of ten findings by three "
        "radiologists."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence=NIH_CXR14.licence,
    access=(
        "public: train.json and test.json of https://github.com/Deepwise-AILab/ChestX-Det10-Dataset, and the "
        "images of NIH ChestX-ray14, https://nihcc.app.box.com/v/ChestXray-NIHCC"
    ),
    homepage="https://github.com/Deepwise-AILab/ChestX-Det10-Dataset",
    citation=(
        "Liu, Lian and Yu, ChestX-Det10: chest X-ray dataset on detection of thoracic abnormalities, arXiv "
        f"2006.10550; {NIH_CXR14.citation}"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Atelectasis",
        "Calcification",
        "Consolidation",
        "Effusion",
        "Emphysema",
        "Fibrosis",
        "Fracture",
        "Mass",
        "Nodule",
        "Pneumothorax",
    ),
    expected_counts={"train": 3_001, "test": 542},
    layout=(
        "train.json, test.json, and the images in train_data and test_data, or in the folders of NIH "
        "ChestX-ray14: images, or images_001 to images_012"
    ),
)
