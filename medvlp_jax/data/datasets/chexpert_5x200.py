"""CheXpert 5x200: images with one of five findings alone, for zero-shot classification and retrieval."""

from __future__ import annotations

from medvlp_jax.data.datasets.chexpert import SPEC as CHEXPERT
from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="chexpert_5x200",
    builder="tfds_builders.chexpert_5x200.chexpert_5x200:Chexpert5x200",
    description=(
        "1,000 frontal radiographs of CheXpert's training set, 200 for each of five findings that they show "
        "alone: chosen by MGCA's rule and a hash, or the published list of GLoRIA. Leave these patients out "
        "of pretraining: chexpert with --option exclude_5x200=yes."
    ),
    modality=CHEXPERT.modality,
    language=CHEXPERT.language,
    licence=CHEXPERT.licence,
    access=CHEXPERT.access,
    homepage=CHEXPERT.homepage,
    citation=(
        "Huang et al., GLoRIA: a multimodal global-local representation learning framework, ICCV 2021; Wang "
        "et al., Multi-granularity cross-modal alignment (MGCA), NeurIPS 2022, arXiv 2210.06044; "
        f"{CHEXPERT.citation}"
    ),
    splits=("test",),
    label_names=("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    expected_counts={"test": 1_000},
    layout=CHEXPERT.layout,
)
