"""ROCO: radiology figures of PubMed Central with their captions."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="roco",
    builder="tfds_builders.roco.roco:Roco",
    description=(
        "81,825 radiology figures of PubMed Central with captions, keywords and UMLS concepts (and 6,127 "
        "other figures), in the published split."
    ),
    modality="radiology, mixed",
    language="en",
    licence="per figure, mostly CC BY*",
    access=(
        "public: git clone https://github.com/razorx89/roco-dataset && cd roco-dataset && "
        "python scripts/fetch.py downloads the figures from PubMed Central"
    ),
    homepage="https://github.com/razorx89/roco-dataset",
    citation=(
        "Pelka et al., Radiology Objects in COntext (ROCO): a multimodal image dataset, MICCAI LABELS "
        "workshop 2018, doi 10.1007/978-3-030-01364-6_20"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"rows": 81_825},
    layout=(
        "data/train, data/validation and data/test (or all_data/...), each with radiology/captions.txt, "
        "licences.txt, keywords.txt, cuis.txt, semtypes.txt and images/"
    ),
)
