"""PadChest: chest radiographs of Hospital San Juan (Alicante) with Spanish reports."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="padchest",
    builder="tfds_builders.padchest.padchest:Padchest",
    description=(
        "More than 160,000 chest radiographs of 67,000 patients with Spanish reports (lower case, stemmed) "
        "and findings, differential diagnoses and locations, a quarter of them assigned by physicians."
    ),
    modality="chest X-ray",
    language="es",
    licence="PadChest research use",
    access=(
        "ask for access on https://bimcv.cipf.es/bimcv-projects/padchest/ and download the table and the "
        "archives 0.zip to 54.zip (1 TB)"
    ),
    homepage="https://bimcv.cipf.es/bimcv-projects/padchest/",
    citation=(
        "Bustos et al., PadChest: A large chest x-ray image dataset with multi-label annotated reports, "
        "Medical Image Analysis 66:101797, 2020"
    ),
    splits=("train", "validation", "test"),
    layout=(
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz) and the images: 0.zip to 54.zip "
        "as downloaded, or unpacked in 0/ to 54/ or images/"
    ),
)
