"""The user's own folder of CT or MR volumes with texts, labels or both."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="volume_folder",
    builder="tfds_builders.volume_folder.volume_folder:VolumeFolder",
    description=(
        "Any folder with CT or MR volumes (NIfTI, DICOM series) and one CSV, TSV or JSONL table of texts and "
        "labels. Volumes are brought into one orientation and stored as slices; splits are made by patient."
    ),
    modality="CT, MR (volumes)",
    language="any",
    licence="that of your files",
    access="your own files: `data build volume_folder --manual-dir FOLDER`",
    homepage="",
    citation="",
    splits=("train", "validation", "test"),
    layout=(
        "metadata.jsonl or metadata.csv (or one other .csv, .tsv or .jsonl file) with a column volume (a "
        ".nii or .nii.gz file, a multi-frame DICOM file, or the folder of a DICOM series, relative to the "
        "folder), a text column, and if possible patient, label and split"
    ),
)
