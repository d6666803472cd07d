"""RSNA Pneumonia Detection Challenge: radiographs of NIH with boxes drawn by radiologists."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="rsna_pneumonia",
    builder="tfds_builders.rsna_pneumonia.rsna_pneumonia:RsnaPneumonia",
    description=(
        "26,684 frontal chest radiographs of NIH, 6,012 of them with boxes around lung opacities that "
        "suggest pneumonia."
    ),
    modality="chest X-ray",
    language="none (labels only)",
    licence="RSNA, non-commercial",
    access=(
        "accept the rules and download "
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (kaggle competitions download -c "
        "rsna-pneumonia-detection-challenge)"
    ),
    homepage="https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    citation=(
        "Shih et al., Augmenting the National Institutes of Health chest radiograph dataset with expert "
        "annotations of possible pneumonia, Radiology: Artificial Intelligence 1(1):e180041, 2019"
    ),
    splits=("train", "validation", "test"),
    label_names=("Pneumonia",),
    expected_counts={"rows": 26_684},
    layout=(
        "stage_2_train_labels.csv, stage_2_detailed_class_info.csv, stage_2_train_images/*.dcm and, for "
        "splits by patient, pneumonia-challenge-dataset-mappings_2018.json"
    ),
)
