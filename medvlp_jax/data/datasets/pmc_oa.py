"""PMC-OA: parts of figures of PubMed Central with their parts of the captions."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="pmc_oa",
    builder="tfds_builders.pmc_oa.pmc_oa:PmcOa",
    description=(
        "1.6 million parts of biomedical figures of PubMed Central's open access subset, each with its part "
        "of the caption, or with the whole caption."
    ),
    modality="biomedical figures, mixed",
    language="en",
    licence="per figure (PMC)",
    access=(
        "public: pmc_oa.jsonl and images.zip (22.7 GB) of https://huggingface.co/datasets/axiong/pmc_oa; "
        "the archive need not be unpacked"
    ),
    homepage="https://huggingface.co/datasets/axiong/pmc_oa",
    citation=(
        "Lin et al., PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents, "
        "MICCAI 2023, arXiv 2303.07240"
    ),
    splits=("train", "validation", "test"),
    layout=(
        "pmc_oa.jsonl (or train.jsonl, valid.jsonl and test.jsonl; pmc_oa_beta.jsonl for pmc_oa/beta) and "
        "images.zip, or its folder caption_T060_filtered_top4_sep_v0_subfigures/"
    ),
)
