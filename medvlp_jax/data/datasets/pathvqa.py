"""PathVQA: questions about pathology images from textbooks and a digital library."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="pathvqa",
    builder="tfds_builders.pathvqa.pathvqa:Pathvqa",
    description=(
        "32,799 questions about pathology images (32,632 without repetitions), half of them with the answer "
        "yes or no, made from captions of two textbooks and the PEIR library."
    ),
    modality="pathology",
    language="en",
    licence="MIT; images: publishers",
    access=(
        "public: data/*.parquet of https://huggingface.co/datasets/flaviagiammarino/path-vqa, or images and "
        "qas of https://github.com/UCSD-AI4H/PathVQA"
    ),
    homepage="https://github.com/UCSD-AI4H/PathVQA",
    citation=(
        "He et al., PathVQA: 30000+ questions for medical visual question answering, 2020, arXiv 2003.10286"
    ),
    splits=("train", "validation", "test"),
    layout=(
        "data/train-*.parquet, data/validation-*.parquet, data/test-*.parquet; or qas/train_vqa.pkl, "
        "qas/val_vqa.pkl, qas/test_vqa.pkl and images/{train,val,test}/*.jpg"
    ),
)
