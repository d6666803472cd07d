"""MS-CXR-T: change of findings between two radiographs of MIMIC-CXR, and sentences about change."""

from __future__ import annotations

from medvlp_jax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="ms_cxr_t",
    builder="tfds_builders.ms_cxr_t.ms_cxr_t:MsCxrT",
    description=(
        "Pairs of chest radiographs of MIMIC-CXR with 1,326 labels (five findings: improving, stable or "
        "worsening), and 361 pairs of sentences that are paraphrases or contradictions about change. Leave "
        "its patients out of pretraining."
    ),
    modality="chest X-ray",
    language="en",
    licence="PhysioNet credentialed",
    access=(
        "credentialed PhysioNet users: sign the agreements and download "
        "https://physionet.org/content/ms-cxr-t/1.0.0/ (the tables) and, for image pairs, the images of "
        "https://physionet.org/content/mimic-cxr-jpg/2.0.0/"
    ),
    homepage="https://physionet.org/content/ms-cxr-t/1.0.0/",
    citation=(
        "Bannur et al., Learning to exploit temporal structure for biomedical vision-language processing, "
        "CVPR 2023, arXiv 2301.04558"
    ),
    splits=("test",),
    layout=(
        "MS_CXR_T_temporal_image_classification_v1.0.0.csv and the images "
        "files/p10/p10002428/s55758034/*.jpg and so on of MIMIC-CXR-JPG; for ms_cxr_t/sentences only "
        "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv"
    ),
)
