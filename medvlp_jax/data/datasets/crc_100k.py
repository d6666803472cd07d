"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: patches of colorectal cancer sections in nine kinds of tissue."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="crc_100k",
    builder="tfds_builders.crc_100k.crc_100k:Crc100k",
    description=(
        "100,000 patches of 224 pixels of 86 patients with colorectal cancer for training and 7,180 of 50 "
        "other patients for test, in nine kinds of tissue."
    ),
    modality="pathology",
    language="none (labels only)",
    licence="CC-BY-4.0",
    access="public: NCT-CRC-HE-100K.zip and CRC-VAL-HE-7K.zip of https://zenodo.org/records/1214456",
    homepage="https://zenodo.org/records/1214456",
    citation=(
        "Kather et al., Predicting survival from colorectal cancer histology slides using deep learning: a "
        "retrospective multicenter study, PLOS Medicine, 2019"
    ),
    splits=("train", "test"),
    label_names=(
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    expected_counts={"train": 100_000, "test": 7_180},
    layout=(
        "NCT-CRC-HE-100K/ (or NCT-CRC-HE-100K-NONORM/) and CRC-VAL-HE-7K/, each with the folders ADI, BACK, "
        "DEB, LYM, MUC, MUS, NORM, STR, TUM of .tif files"
    ),
)
