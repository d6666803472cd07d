"""CheXpert: chest radiographs of Stanford Hospital with 14 findings; reports by CheXpert Plus."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="chexpert",
    builder="tfds_builders.chexpert.chexpert:Chexpert",
    description=(
        "223,648 chest radiographs of 64,740 patients with 14 findings: by a labeler in training, by three "
        "radiologists in the validation set. With the table of CheXpert Plus also the reports."
    ),
    modality="chest X-ray",
    language="en",
    licence="Stanford research use",
    access=(
        "accept the research use agreement and download CheXpert-v1.0-small or CheXpert-v1.0 from "
        "https://stanfordmlgroup.github.io/competitions/chexpert/, and for reports CheXpert Plus from "
        "https://stanfordaimi.azurewebsites.net/datasets/5158c524-d3ab-4e02-96e9-6ee9efc110a1"
    ),
    homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
    citation=(
        "Irvin et al., CheXpert: a large chest radiograph dataset with uncertainty labels and expert "
        "comparison, AAAI 2019, arXiv 1901.07031; Chambon et al., CheXpert Plus, 2024, arXiv 2405.19538"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    ),
    expected_counts={"train": 223_414, "validation": 234},
    layout=(
        "train.csv, valid.csv, train/patient00001/study1/view1_frontal.jpg and so on, valid/... (in the "
        "folder itself or in CheXpert-v1.0-small or CheXpert-v1.0); for reports also "
        "df_chexpert_plus_240401.csv"
    ),
)
