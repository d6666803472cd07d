"""Chest ImaGenome: anatomical boxes with attributes on the frontal images of MIMIC-CXR."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="chest_imagenome",
    builder="tfds_builders.chest_imagenome.chest_imagenome:ChestImagenome",
    description=(
        "Scene graphs of 242,072 frontal chest radiographs of MIMIC-CXR: anatomical regions as boxes, with "
        "the findings and sentences of the report that speak of them (silver, automatic), and 1,000 images "
        "whose boxes were corrected by hand (gold)."
    ),
    modality="chest X-ray",
    language="en",
    licence="PhysioNet credentialed",
    access=(
        "credentialed PhysioNet users: sign the agreements and download "
        "https://physionet.org/content/chest-imagenome/1.0.0/ and the images of "
        "https://physionet.org/content/mimic-cxr-jpg/2.0.0/"
    ),
    homepage="https://physionet.org/content/chest-imagenome/1.0.0/",
    citation=(
        "Wu et al., Chest ImaGenome dataset for clinical reasoning, NeurIPS Datasets and Benchmarks 2021, "
        "arXiv 2108.00316"
    ),
    splits=("train", "validation", "test"),
    # The nine findings of AnaXNet (Agu et al., MICCAI 2021); all others are in the attributes of the regions.
    label_names=(
        "lung opacity",
        "pleural effusion",
        "atelectasis",
        "enlarged cardiac silhouette",
        "pulmonary edema/hazy opacity",
        "pneumothorax",
        "consolidation",
        "fluid overload/heart failure",
        "pneumonia",
    ),
    layout=(
        "silver_dataset/scene_graph.zip (or unpacked), silver_dataset/splits/*.csv, for gold also "
        "gold_dataset/*.csv and *.txt and utils/cxr-record-list_view.csv (in the folder itself or in "
        "chest-imagenome), and the images files/p10/p10000032/s50414267/*.jpg and so on of MIMIC-CXR-JPG"
    ),
)
