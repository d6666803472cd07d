"""MIMIC 5x200: images with one of five findings alone, for zero-shot classification and retrieval."""

from __future__ import annotations

from medvlp_jax.data.datasets.mimic_cxr import SPEC as MIMIC_CXR
from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="mimic_5x200",
    builder="tfds_builders.mimic_5x200.mimic_5x200:Mimic5x200",
    description=(
        "1,000 frontal radiographs of MIMIC-CXR's training set with their reports, 200 for each of five "
        "findings, of which they show one: chosen by a hash, or the published list of BenchX. Leave these "
        "patients out of pretraining: mimic_cxr with --option exclude_5x200=yes."
    ),
    modality=MIMIC_CXR.modality,
    language=MIMIC_CXR.language,
    licence=MIMIC_CXR.licence,
    access=MIMIC_CXR.access,
    homepage=MIMIC_CXR.homepage,
    citation=(
        "Wang et al., MedCLIP: contrastive learning from unpaired medical images and text, EMNLP 2022, arXiv "
        f"2210.10163; {MIMIC_CXR.citation}"
    ),
    splits=("test",),
    label_names=("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    expected_counts={"test": 1_000},
    layout=MIMIC_CXR.layout,
)
