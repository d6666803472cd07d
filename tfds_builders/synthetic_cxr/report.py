"""Writes the report of a study from its true state.

Every definite finding is stated with its side in the findings section. Absent findings are denied at
random or not mentioned; hedged labels are left uncertain; sentences come in random order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfds_builders.synthetic_cxr import labels as L
from tfds_builders.synthetic_cxr import phrases as P
from tfds_builders.synthetic_cxr.findings import Finding, Part
from tfds_builders.synthetic_cxr.world import Study

_ACUTE = frozenset(
    {L.ATELECTASIS, L.CONSOLIDATION, L.EDEMA, L.EFFUSION, L.PNEUMOTHORAX, L.FRACTURE}
)


@dataclasses.dataclass(frozen=True)
class Report:
    """The sections and the full text of a report."""

    text: str
    findings: str
    impression: str


def write_report(study: Study, *, rng: np.random.Generator) -> Report:
    """Words the study; equal generators give equal reports."""
    findings = _findings_section(study, rng)
    impression = _impression_section(study, rng)
    parts = []
    if rng.random() < 0.6:
        parts.append(f"EXAMINATION: {_technique(study, rng)}")
    if rng.random() < 0.4:
        parts.append(f"INDICATION: {_pick(rng, P.INDICATIONS)}.")
    if rng.random() < 0.6:
        parts.append(f"COMPARISON: {_comparison(study, rng)}")
    parts += [f"FINDINGS: {findings}", f"IMPRESSION: {impression}"]
    return Report("\n".join(parts), findings, impression)


def place_of(part: Part, label: int, rng: np.random.Generator) -> str:
    """Where a part lies, with its side, in one of the usual wordings."""
    side = L.SIDES[part.side]
    zone = L.ZONES[part.zone]
    if label == L.THICKENING:
        return f"{side} apex" if part.kind == "apical" else f"{side} lateral chest wall"
    if label == L.ATELECTASIS:
        if part.kind == "lobar":
            return f"{side} lower lobe"
        return _pick(rng, (f"{side} lung base", f"{side} lower lung zone", f"{side} base"))
    if zone == "mid":
        return _pick(rng, (f"{side} mid lung zone", f"{side} mid lung", f"{side} perihilar region"))
    return _pick(rng, (f"{side} {zone} lung zone", f"{side} {zone} lobe", f"{side} {zone} lung"))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _join(items: list[str], word: str = "and") -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {word} {items[-1]}"


def _sentence(text: str) -> str:
    text = " ".join(text.split()).strip()
    return f"{text[0].upper()}{text[1:]}."


def _article(phrase: str) -> str:
    return "an" if phrase[0].lower() in "aeiou" else "a"


def _places(finding: Finding, rng: np.random.Generator) -> str:
    places: dict[tuple[int, int, str], str] = {}
    for part in finding.parts:
        where = (part.side, part.zone, part.kind)
        if where not in places:
            places[where] = place_of(part, finding.label, rng)
    return _join(list(places.values()))


def _fields(finding: Finding, rng: np.random.Generator) -> dict[str, str]:
    """Values of the placeholders of `phrases` for a finding."""
    sides = {part.side for part in finding.parts}
    many = len(finding.parts) > 1
    if finding.label in (L.PNEUMOTHORAX, L.ELEVATION, L.SCOLIOSIS):
        many = False
    bone = "clavicle" if finding.parts[0].kind == "clavicle" else "rib"
    if bone == "rib" and many:
        bone = "ribs"
    return {
        "side": "bilateral" if sides >= {L.RIGHT, L.LEFT} else L.SIDES[finding.side],
        "place": _places(finding, rng),
        "bone": bone,
        "s": "s" if many else "",
        "ies": "ies" if many else "y",
        "is": "are" if many else "is",
        "count": P.NUMBERS[len(finding.parts)],
    }


def noun_phrase(finding: Finding, rng: np.random.Generator) -> str:
    """Adjective and noun with side or place, without article: "moderate right pleural effusion"."""
    fields = _fields(finding, rng)
    if finding.label == L.NODULE:
        return _nodule_phrase(finding, fields, rng)
    adjective = _pick(rng, P.ADJECTIVES[finding.label][finding.severity - 1])
    noun = _pick(rng, P.NOUNS[finding.label]).format(**fields)
    return f"{adjective} {noun.replace('ribs fractures', 'rib fractures')}"


def _nodule_phrase(finding: Finding, fields: dict[str, str], rng: np.random.Generator) -> str:
    adjective = _pick(rng, P.ADJECTIVES[L.NODULE][finding.severity - 1])
    kind = "calcified " if finding.parts[0].kind else ""
    word = _pick(rng, ("pulmonary nodule", "nodule", "lung nodule"))
    if kind and rng.random() < 0.5:
        kind, word = "", "calcified granuloma"
    count = f"{fields['count']} " if fields["s"] else ""
    return f"{count}{adjective} {kind}{word}{fields['s']} in the {fields['place']}"


def _with_article(phrase: str, finding: Finding) -> str:
    """Adds "a" where the noun can be counted and is singular."""
    countable = finding.label in (L.EFFUSION, L.PNEUMOTHORAX, L.NODULE, L.FRACTURE, L.HERNIA)
    plural = len(finding.parts) > 1 and finding.label != L.PNEUMOTHORAX
    return f"{_article(phrase)} {phrase}" if countable and not plural else phrase


def _state(finding: Finding, rng: np.random.Generator) -> str:
    """A sentence that states the finding, without the full stop."""
    if rng.random() < 0.4:
        description = _pick(rng, P.DESCRIPTIONS[finding.label][finding.severity - 1])
        text = description.format(**_fields(finding, rng))
        return text.replace("ribs fractures", "rib fractures")
    phrase = noun_phrase(finding, rng)
    frame = _pick(rng, P.STATEMENTS)
    if frame != "{np}":
        phrase = _with_article(phrase, finding)
    text = frame.format(np=phrase)
    plural = len(finding.parts) > 1 and finding.label in (L.EFFUSION, L.NODULE, L.FRACTURE)
    if plural:
        text = text.replace("There is", "There are").replace("Demonstrated is", "Demonstrated are")
        for verb in ("present", "seen", "noted"):
            text = text.replace(f" is {verb}", f" are {verb}")
    return text


def _state_devices(finding: Finding, rng: np.random.Generator) -> list[str]:
    out = []
    for part in finding.parts:
        text = _pick(rng, P.DEVICES[part.kind]).format(side=L.SIDES[part.side])
        out.append(_sentence(text))
    return out


def _hedge(label: int, rng: np.random.Generator) -> str:
    return _sentence(_pick(rng, P.HEDGES).format(np=_pick(rng, P.HEDGED_NOUNS[label])))


def _denials(study: Study, rng: np.random.Generator) -> list[str]:
    """Denies a random subset of the labels that are absent beyond doubt."""
    label = study.label()
    told: set[int] = set()
    out = []
    talkative = study.chatter * rng.uniform(
        0.2, 1.1
    )  # some readers list every negative, others none
    for group, sentences, chance in P.DENIALS:
        absent = all(label[index] == L.ABSENT for index in group)
        if absent and not told & set(group) and rng.random() < chance * talkative:
            out.append(_sentence(_pick(rng, sentences)))
            told |= set(group)
    return out


def _findings_section(study: Study, rng: np.random.Generator) -> str:
    sentences = []
    for finding in study.findings:
        if finding.label in study.hedged:
            continue
        if finding.label == L.DEVICE:
            sentences += _state_devices(finding, rng)
            continue
        text = _state(finding, rng)
        change = study.changes.get(finding.label)
        if change is not None and rng.random() < 0.7:
            text = f"{text}, {_pick(rng, P.CHANGES[change])}"
        sentences.append(_sentence(text))
    sentences += [_hedge(label, rng) for label in sorted(study.hedged)]
    for finding in study.resolved:
        certain = finding.label not in study.hedged and finding.label != L.DEVICE
        if certain and rng.random() < 0.6:
            sentences.append(_resolved(finding, rng))
    sentences += _denials(study, rng)
    while rng.random() < 0.25 * study.chatter:
        sentences.append(_sentence(_pick(rng, P.FILLERS)))
    if not sentences:
        sentences.append(_sentence(_pick(rng, P.FILLERS)))
    order = rng.permutation(len(sentences))
    return " ".join(dict.fromkeys(sentences[index] for index in order))


def _resolved(finding: Finding, rng: np.random.Generator) -> str:
    noun = P.PLAIN_NOUNS[finding.label]
    sides = {part.side for part in finding.parts}
    sided = finding.label in (L.EFFUSION, L.PNEUMOTHORAX, L.CONSOLIDATION) and len(sides) == 1
    if sided:
        noun = f"{L.SIDES[finding.side]} {noun}"
    return _sentence(_pick(rng, P.RESOLVED).format(noun=noun))


def _impression_section(study: Study, rng: np.random.Generator) -> str:
    items = []
    for finding in study.findings:
        if finding.label in study.hedged:
            continue
        if finding.label == L.DEVICE:
            if rng.random() < 0.8:
                kinds = _join([P.DEVICE_NOUNS[part.kind] for part in finding.parts])
                items.append(_sentence(f"{kinds} in place"))
            continue
        if finding.label not in _ACUTE and rng.random() < 0.1:
            continue  # chronic findings are sometimes left out of the impression
        text = noun_phrase(finding, rng)
        change = study.changes.get(finding.label)
        if change is not None and rng.random() < 0.5:
            text = f"{text}, {_pick(rng, P.CHANGES[change])}"
        items.append(_sentence(text))
    for label in sorted(study.hedged):
        if rng.random() < 0.5:
            items.append(_hedge(label, rng))
    label = study.label()
    if not label.any():
        items = [_sentence(_pick(rng, P.NORMAL))]
    elif not items or (not any(label[index] for index in _ACUTE) and rng.random() < 0.5):
        quiet = not any(label[index] for index in _ACUTE)
        items.append(_sentence(_pick(rng, P.NO_ACUTE) if quiet else "As described above"))
    elif rng.random() < 0.4 * study.chatter:
        denials = _denials(study, rng)
        items += [denials[index] for index in rng.permutation(len(denials))[:2]]
    items = [items[index] for index in rng.permutation(len(items))]
    if len(items) > 1 and rng.random() < 0.4:
        return " ".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    return " ".join(items)


def _technique(study: Study, rng: np.random.Generator) -> str:
    if len(study.views) > 1:
        return _pick(rng, ("PA and lateral chest radiographs.", "Chest, two views."))
    return _pick(
        rng, ("PA chest radiograph.", "Chest, single frontal view.", "Frontal chest X-ray.")
    )


def _comparison(study: Study, rng: np.random.Generator) -> str:
    if not study.prior_study_id:
        return _pick(rng, ("None.", "None available."))
    return _pick(
        rng, ("Prior chest radiograph.", "Previous study.", "Chest radiograph, earlier date.")
    )
