"""COVIDx CXR: chest radiographs with and without COVID-19, of several public collections."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="covidx",
    builder="tfds_builders.covidx.covidx:Covidx",
    description=(
        "Chest radiographs of several public collections, classified as normal, pneumonia and COVID-19, or "
        "as COVID-19 negative and positive: versions 5 to 9, CXR-3 and CXR-4 (84,818 images)."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="per collection",
    access=(
        "download https://www.kaggle.com/datasets/andyczhao/covidx-cxr2 (Kaggle account; its versions hold "
        "CXR-2 to CXR-4); lists of the older versions: labels/ of https://github.com/lindawangg/COVID-Net"
    ),
    homepage="https://github.com/lindawangg/COVID-Net",
    citation=(
        "Wang et al., COVID-Net, Scientific Reports 10:19549, 2020; CXR-4: Wu et al., arXiv 2311.17677, 2023"
    ),
    splits=("train", "validation", "test"),
    layout=(
        "train.txt, val.txt, test.txt (CXR-4), or train_COVIDx9A.txt and test_COVIDx9A.txt and so on (also "
        "in labels/), and the images in train/, val/, test/ (also in data/)"
    ),
)
