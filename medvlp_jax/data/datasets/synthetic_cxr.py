"""The embedded corpus: procedural chest radiographs with reports and the whole truth."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="synthetic_cxr",
    builder="tfds_builders.synthetic_cxr.synthetic_cxr:SyntheticCxr",
    description=(
        "Procedural chest radiographs (PA and lateral) of patients followed over time, with reports, "
        "labels, boxes, masks and questions. Generated here; no patient is in it."
    ),
    modality="chest X-ray (synthetic)",
    language="en",
    licence="CC0-1.0",
    access="generated on this machine, no download: `data build synthetic_cxr`",
    homepage="",
    citation="this project",
    splits=("train", "validation", "test"),
    label_names=(
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Pleural Effusion",
        "Pneumothorax",
        "Nodule",
        "Fracture",
        "Support Devices",
        "Emphysema",
        "Hernia",
        "Pleural Thickening",
        "Scoliosis",
        "Elevated Hemidiaphragm",
    ),
    needs_manual_dir=False,
)
