"""TBX11K: chest radiographs of healthy, otherwise sick and tuberculous people, with boxes."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="tbx11k",
    builder="tfds_builders.tbx11k.tbx11k:Tbx11k",
    description=(
        "8,400 chest radiographs of 512 x 512 pixels with known labels (of 11,200): healthy, sick without "
        "tuberculosis, or tuberculosis with boxes of three kinds. The labels of the test set are secret."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="CC BY-NC-SA 2.0 (JSON)",
    access="public: the archive by the links on https://mmcheng.net/tb/",
    homepage="https://mmcheng.net/tb/",
    citation=(
        "Liu et al., Rethinking computer-aided tuberculosis diagnosis, CVPR 2020; Liu et al., Revisiting "
        "computer-aided tuberculosis diagnosis, TPAMI 2023"
    ),
    splits=("train", "validation", "test"),
    label_names=(
        "Healthy",
        "Sick, no tuberculosis",
        "Tuberculosis",
        "ActiveTuberculosis",
        "ObsoletePulmonaryTuberculosis",
        "PulmonaryTuberculosis",
    ),
    expected_counts={"train": 6_600, "validation": 1_800},
    layout=(
        "lists/TBX11K_train.txt and TBX11K_val.txt, annotations/json/TBX11K_train.json and TBX11K_val.json, "
        "imgs/health/*.png, imgs/sick/*.png and imgs/tb/*.png"
    ),
)
