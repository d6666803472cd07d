"""RadNLI: pairs of sentences of radiology reports for natural language inference."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="radnli",
    builder="tfds_builders.radnli.radnli:Radnli",
    description=(
        "960 pairs of sentences of MIMIC-CXR reports; whether the second follows from the first was labelled "
        "by hand. There is no training set: models are trained on mednli."
    ),
    modality="text (radiology)",
    language="en",
    licence="PhysioNet credentialed",
    access="PhysioNet account with training: https://physionet.org/content/radnli-report-inference/1.0.0/",
    homepage="https://physionet.org/content/radnli-report-inference/1.0.0/",
    citation=(
        "Miura et al., Improving factual completeness and consistency of image-to-text radiology report "
        "generation, NAACL 2021"
    ),
    splits=("validation", "test"),
    label_names=("entailment", "neutral", "contradiction"),
    expected_counts={"validation": 480, "test": 480},
    layout="radnli_dev_v1.jsonl and radnli_test_v1.jsonl",
)
