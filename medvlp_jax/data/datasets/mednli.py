"""MedNLI: pairs of sentences of clinical notes for natural language inference."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="mednli",
    builder="tfds_builders.mednli.mednli:Mednli",
    description=(
        "14,049 pairs: a sentence from the past medical history of a patient of MIMIC-III, and one that a "
        "clinician wrote, which follows from it, may follow, or contradicts it."
    ),
    modality="text (clinical notes)",
    language="en",
    licence="PhysioNet credentialed",
    access="PhysioNet account with training: https://physionet.org/content/mednli/1.0.0/",
    homepage="https://physionet.org/content/mednli/1.0.0/",
    citation=(
        "Romanov and Shivade, Lessons from natural language inference in the clinical domain, EMNLP 2018, "
        "arXiv 1808.06752"
    ),
    splits=("train", "validation", "test"),
    label_names=("entailment", "neutral", "contradiction"),
    expected_counts={"train": 11_232, "validation": 1_395, "test": 1_422},
    layout="mli_train_v1.jsonl, mli_dev_v1.jsonl and mli_test_v1.jsonl",
)
