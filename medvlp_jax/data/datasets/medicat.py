"""MedICaT: medical figures with captions, references in the text, subfigures and subcaptions."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="medicat",
    builder="tfds_builders.medicat.medicat:Medicat",
    description=(
        "217,060 medical figures of 131,410 open access papers with captions and the sentences that refer to "
        "them; 2,069 compound figures with subfigures and their subcaptions. None is in ROCO."
    ),
    modality="medical figures, mixed",
    language="en",
    licence="per figure, research",
    access=(
        "fill out the form on https://github.com/allenai/medicat; the address of the archive comes by mail. "
        "tar xzf medicat_release.tar.gz"
    ),
    homepage="https://github.com/allenai/medicat",
    citation=(
        "Subramanian et al., MedICaT: A Dataset of Medical Images, Captions, and Textual References, "
        "Findings of EMNLP 2020"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"rows": 217_060},
    layout=(
        "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl and figures/ with "
        "HASH_2-Figure1-1.png and so on, and optionally subcaptions_public.jsonl; or the folder release/ "
        "with these"
    ),
)
