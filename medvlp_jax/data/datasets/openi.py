"""Open-i: the chest X-ray collection of Indiana University, also called IU X-ray."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="openi",
    builder="tfds_builders.openi.openi:Openi",
    description=(
        "7,470 chest radiographs with 3,955 reports in sections and their MeSH headings; frontal and "
        "lateral images of one study share the report."
    ),
    modality="chest X-ray",
    language="en",
    licence="CC BY-NC-ND 4.0",
    access=(
        "public: NLMCXR_png.tgz and NLMCXR_reports.tgz of https://openi.nlm.nih.gov/faq (direct: "
        "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz)"
    ),
    homepage="https://openi.nlm.nih.gov/",
    citation=(
        "Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and "
        "retrieval, JAMIA 23(2):304-310, 2016"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Normal",
        "Cardiomegaly",
        "Opacity",
        "Atelectasis",
        "Calcified Granuloma",
        "Pleural Effusion",
        "Airspace Disease",
        "Nodule",
        "Scoliosis",
        "Fracture",
        "Pulmonary Congestion",
        "Infiltrate",
        "Emphysema",
        "Hiatal Hernia",
        "Pneumonia",
        "Edema",
        "Consolidation",
        "Mass",
        "Pneumothorax",
        "Support Devices",
    ),
    expected_counts={"rows": 7_470},
    layout=(
        "ecgen-radiology/1.xml and so on (unpacked NLMCXR_reports.tgz) and "
        "NLMCXR_png/CXR1_1_IM-0001-3001.png and so on (unpacked NLMCXR_png.tgz)"
    ),
)
