"""MedMNIST v2: 18 small sets of biomedical images and volumes for classification."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="medmnist",
    builder="tfds_builders.medmnist.medmnist:Medmnist",
    description=(
        "Twelve sets of images (28, 64, 128 or 224 pixels a side) and six of volumes (28 or 64) with class "
        "labels; one config per set and size, e.g. medmnist/pneumoniamnist_64."
    ),
    modality="mixed, small",
    language="none (labels only)",
    licence="CC-BY-4.0; derma: NC",
    access="public: https://zenodo.org/records/10519652",
    homepage="https://medmnist.com",
    citation=(
        "Yang et al., MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
        "classification, Scientific Data 10:41, 2023"
    ),
    splits=("train", "validation", "test"),
    layout="SET.npz or SET_64.npz, SET_128.npz, SET_224.npz as on Zenodo, e.g. pneumoniamnist_64.npz",
)
