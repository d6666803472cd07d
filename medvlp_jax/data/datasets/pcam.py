"""PatchCamelyon: patches of lymph node sections with or without metastases."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="pcam",
    builder="tfds_builders.pcam.pcam:Pcam",
    description=(
        "327,680 patches of 96 pixels of lymph node sections (Camelyon16); positive when the centre of 32 "
        "pixels holds tumour."
    ),
    modality="pathology",
    language="none (labels only)",
    licence="CC0-1.0",
    access="public: https://zenodo.org/records/2546921",
    homepage="https://github.com/basveeling/pcam",
    citation="Veeling et al., Rotation equivariant CNNs for digital pathology, MICCAI 2018, arXiv 1806.03962",
    splits=("train", "validation", "test"),
    label_names=("Tumor",),
    expected_counts={"train": 262_144, "validation": 32_768, "test": 32_768},
    layout=(
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5.gz (or .h5), and, if wanted, "
        "camelyonpatch_level_2_split_{train,valid,test}_meta.csv"
    ),
)
