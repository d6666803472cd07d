"""Visual questions and answers from the true state of a study."""

from __future__ import annotations

import numpy as np

from tfds_builders.synthetic_cxr import labels as L
from tfds_builders.synthetic_cxr import phrases as P
from tfds_builders.synthetic_cxr.findings import Finding
from tfds_builders.synthetic_cxr.world import Study

_SIDED = frozenset(
    {
        L.ATELECTASIS,
        L.CONSOLIDATION,
        L.EFFUSION,
        L.PNEUMOTHORAX,
        L.NODULE,
        L.FRACTURE,
        L.THICKENING,
        L.ELEVATION,
    }
)
_ZONED = frozenset({L.CONSOLIDATION, L.NODULE})
_COUNTED = frozenset({L.NODULE, L.FRACTURE})

Qa = dict[str, str]


def ask(study: Study, view: str, *, rng: np.random.Generator, count: int = 6) -> list[Qa]:
    """Questions about one image of a study.

    Args:
        study: the truth.
        view: the view of the image; sides are only asked of a frontal one.
        rng: source of the choice and the wording.
        count: questions per image.

    Returns:
        `count` different questions with `answer` and `answer_type` ("CLOSED" for yes and no, else
        "OPEN"); hedged labels are never asked about.
    """
    certain = [finding for finding in study.findings if finding.label not in study.hedged]
    pool = _presence(study, rng)
    for finding in certain:
        pool += _details(finding, view, rng)
        change = study.changes.get(finding.label)
        if change is not None and finding.label != L.DEVICE:
            question = f"How has the {P.PLAIN_NOUNS[finding.label]} changed since the prior study?"
            pool.append(_open(question, change))
    pool += _whole_image(study, view, rng)
    order = rng.permutation(len(pool))
    return [pool[index] for index in order[:count]]


def _open(question: str, answer: str) -> Qa:
    return {"question": question, "answer": answer, "answer_type": "OPEN"}


def _closed(question: str, answer: bool) -> Qa:
    return {"question": question, "answer": "yes" if answer else "no", "answer_type": "CLOSED"}


def _presence(study: Study, rng: np.random.Generator) -> list[Qa]:
    """Yes-or-no questions: all present findings and as many absent ones."""
    label = study.label()
    present = [index for index in range(label.size) if label[index] == L.PRESENT]
    absent = [index for index in range(label.size) if label[index] == L.ABSENT]
    chosen = [absent[i] for i in rng.permutation(len(absent))[: max(2, len(present))]]
    out = []
    for index in present + chosen:
        noun = P.PLAIN_NOUNS[index]
        frames = (
            f"Is there evidence of {noun}?",
            f"Does the image show {noun}?",
            f"Is {noun} present?",
        )
        out.append(_closed(frames[int(rng.integers(3))], label[index] == L.PRESENT))
    return out


def _details(finding: Finding, view: str, rng: np.random.Generator) -> list[Qa]:
    """Side, place, severity, number and kind of a present finding."""
    noun = P.PLAIN_NOUNS[finding.label]
    out = []
    frontal = view == "PA"
    if finding.label in _SIDED and frontal:
        frames = (f"Which side is the {noun} on?", f"On which side is the {noun} located?")
        out.append(_open(frames[int(rng.integers(2))], L.SIDES[finding.side]))
        if finding.side in (L.RIGHT, L.LEFT):
            asked = int(rng.choice((L.RIGHT, L.LEFT)))
            question = f"Is the {noun} on the {L.SIDES[asked]} side?"
            out.append(_closed(question, asked == finding.side))
    if finding.label in _ZONED and frontal and len(finding.parts) == 1:
        part = finding.parts[0]
        out.append(
            _open(f"Where is the {noun}?", f"{L.SIDES[part.side]} {L.ZONES[part.zone]} lung zone")
        )
    if finding.label in _COUNTED and frontal and finding.parts[0].kind != "clavicle":
        name = "rib fractures" if finding.label == L.FRACTURE else f"{noun}s"
        out.append(_open(f"How many {name} are there?", P.NUMBERS[len(finding.parts)]))
    if finding.label == L.DEVICE:
        kinds = sorted(P.DEVICE_NOUNS[part.kind] for part in finding.parts)
        out.append(_open("Which support devices are present?", ", ".join(kinds)))
    elif finding.label == L.SCOLIOSIS and frontal:
        out.append(_open("To which side is the spine convex?", L.SIDES[finding.side]))
    if finding.label != L.DEVICE:
        out.append(_open(f"How severe is the {noun}?", L.SEVERITIES[finding.severity]))
    return out


def _whole_image(study: Study, view: str, rng: np.random.Generator) -> list[Qa]:
    out = [_open("Which view is this?", "PA" if view == "PA" else "lateral")]
    out.append(_closed("Is this a lateral view?", view == "LATERAL"))
    if not study.hedged:
        out.append(_closed("Is this chest radiograph normal?", not study.findings))
    out = [out[index] for index in rng.permutation(len(out))[:2]]
    for finding in study.resolved:
        if finding.label != L.DEVICE and finding.label not in study.hedged:
            noun = P.PLAIN_NOUNS[finding.label]
            out.append(_closed(f"Has the {noun} of the prior study resolved?", True))
    return out
