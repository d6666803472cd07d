"""ROCOv2: radiology figures of PubMed Central with captions and concepts."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="rocov2",
    builder="tfds_builders.rocov2.rocov2:Rocov2",
    description=(
        "79,789 radiology figures of PubMed Central with captions and UMLS concepts, in the published split: "
        "an updated and cleaned ROCO."
    ),
    modality="radiology, mixed",
    language="en",
    licence="per figure, CC BY or NC",
    access="public: https://zenodo.org/records/10821435 (all files; the archives need not be unpacked)",
    homepage="https://zenodo.org/records/10821435",
    citation=(
        "Rückert et al., ROCOv2: Radiology Objects in COntext Version 2, an Updated Multimodal Image "
        "Dataset, Scientific Data 11:688, 2024"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"train": 59_958, "validation": 9_904, "test": 9_927, "rows": 79_789},
    layout=(
        "train_captions.csv, train_concepts.csv and train_images.zip (or unpacked in train/), likewise "
        "valid_... and test_..., and license_information.csv"
    ),
)
