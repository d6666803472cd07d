"""PMC-VQA: multiple-choice questions about figures of PubMed Central, written by a language model."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="pmc_vqa",
    builder="tfds_builders.pmc_vqa.pmc_vqa:PmcVqa",
    description=(
        "About 227,000 questions with four choices about 149,000 figures of PubMed Central, which a language "
        "model wrote from the captions. Release 2 has fewer compound figures."
    ),
    modality="figures, mixed",
    language="en",
    licence="per figure (PMC Open Access)",
    access="public: https://huggingface.co/datasets/xmcmic/PMC-VQA (18.9 GB of images; release 2: 2.2 GB)",
    homepage="https://huggingface.co/datasets/xmcmic/PMC-VQA",
    citation=(
        "Zhang et al., PMC-VQA: visual instruction tuning for medical visual question answering, 2023, arXiv "
        "2305.10415"
    ),
    splits=("train", "test"),
    layout=(
        "train.csv, test.csv (or test_clean.csv) and images.zip (or images/); for release 2 train_2.csv, "
        "test_2.csv and images_2.zip (or images_2/)"
    ),
)
