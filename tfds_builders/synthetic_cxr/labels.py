"""Names of the findings, sides, zones and severities: plain Python, imports nothing."""

from __future__ import annotations

LABEL_NAMES: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Pneumothorax",
    "Nodule",
    "Fracture",
    "Support Devices",
    "Emphysema",
    "Hernia",
    "Pleural Thickening",
    "Scoliosis",
    "Elevated Hemidiaphragm",
)
"""Findings; position = index of the label vector = bit of the mask. Spelled as in CheXpert and
ChestX-ray14 where they have the finding, so that results can be set side by side."""

(
    ATELECTASIS,
    CARDIOMEGALY,
    CONSOLIDATION,
    EDEMA,
    EFFUSION,
    PNEUMOTHORAX,
    NODULE,
    FRACTURE,
    DEVICE,
    EMPHYSEMA,
    HERNIA,
    THICKENING,
    SCOLIOSIS,
    ELEVATION,
) = range(len(LABEL_NAMES))

SEVERITIES: tuple[str, ...] = ("none", "mild", "moderate", "severe")
"""Names of the severity codes 0 to 3."""

SIDES: tuple[str, ...] = ("none", "right", "left", "bilateral", "midline")
"""Names of the side codes. Always the patient's side: the patient's right is on the image's left."""

NO_SIDE, RIGHT, LEFT, BILATERAL, MIDLINE = range(len(SIDES))

ZONES: tuple[str, ...] = ("upper", "mid", "lower")
"""Names of the lung zones 0 to 2, from the apex down."""

VIEWS: tuple[str, ...] = ("PA", "LATERAL")
"""Values of `view_position`."""

ABSENT, PRESENT, UNCERTAIN = 0, 1, -1
"""Values of the label vector; a label of this corpus is never missing."""
