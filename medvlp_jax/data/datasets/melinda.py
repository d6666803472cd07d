"""MELINDA: figures of molecular biology and the experiment methods that they show."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="melinda",
    builder="tfds_builders.melinda.melinda:Melinda",
    description=(
        "5,371 figures of molecular biology with captions and the experiment methods that they show: how an "
        "interaction and how its participants were detected, each as a coarse and a fine class."
    ),
    modality="biomedical figures",
    language="en",
    licence="per figure (PMC)",
    access=(
        "download the dataset as https://github.com/PlusLabNLP/melinda says and unpack its images into "
        "melinda_images/"
    ),
    homepage="https://github.com/PlusLabNLP/melinda",
    citation=(
        "Wu et al., MELINDA: A Multimodal Dataset for Biomedical Experiment Method Classification, AAAI "
        "2021, arXiv 2012.09216"
    ),
    splits=("train", "validation", "test"),
    expected_counts={"rows": 5_371},
    layout=(
        "train.csv, dev.csv and test.csv (columns figure_file, caption, i_meth, p_meth, i_meth_label, "
        "p_meth_label) and melinda_images/"
    ),
)
