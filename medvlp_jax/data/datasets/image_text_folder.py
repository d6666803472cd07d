"""The user's own folder of images with texts, labels or both."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="image_text_folder",
    builder="tfds_builders.image_text_folder.image_text_folder:ImageTextFolder",
    description=(
        "Any folder with images (PNG, JPEG, TIFF, DICOM) and one CSV, TSV or JSONL table of texts "
        "and labels. Columns are detected by name; splits are made by patient."
    ),
    modality="any",
    language="any",
    licence="that of your files",
    access="your own files: `data build image_text_folder --manual-dir FOLDER`",
    homepage="",
    citation="",
    splits=("train", "validation", "test"),
    layout=(
        "metadata.jsonl or metadata.csv (or one other .csv, .tsv or .jsonl file) with at least an "
        "image column (image, path, file ...) and a text column (text, report, caption ... or "
        "findings and impression); image paths are relative to the folder"
    ),
)
