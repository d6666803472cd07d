"""NIH ChestX-ray14: chest radiographs with 14 findings, mined from reports, and some boxes."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="nih_cxr14",
    builder="tfds_builders.nih_cxr14.nih_cxr14:NihCxr14",
    description=(
        "112,120 frontal chest radiographs of 30,805 patients with 14 findings mined from reports; 984 "
        "boxes in 880 of them."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="NIH, free use",
    access=(
        "public: images, Data_Entry_2017*.csv, BBox_List_2017.csv, train_val_list.txt and test_list.txt of "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    ),
    homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    citation=(
        "Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks on "
        "weakly-supervised classification and localization of common thorax diseases, CVPR 2017, "
        "arXiv 1705.02315"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
    ),
    expected_counts={"rows": 112_120, "test": 25_596},
    layout=(
        "Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv), BBox_List_2017.csv, train_val_list.txt, "
        "test_list.txt and the images, in images/ or in images_001/images/ to images_012/images/"
    ),
)
