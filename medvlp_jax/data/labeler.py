"""Findings of a chest X-ray report by rules: the 14 labels of CheXpert as present, absent or uncertain.

The label set, the four values and the order of the decisions follow the CheXpert labeler (Irvin et al.,
arXiv 1901.07031): mention, then uncertainty that contains a "not" ("cannot exclude"), then negation, then
uncertainty, then the report as a whole. The phrases in `labeler/*.json` and the rules of scope are our own;
they work on words, without a parser, so a core labels thousands of reports per second (docs/labeler.md).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medvlp_jax.data.reports import clean_text, descriptive_text, split_sentences

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 labels in the order of CheXpert's tables."""

PRESENT, ABSENT, UNCERTAIN, MISSING = 1, 0, -1, -2

RULE_FOLDER = pathlib.Path(__file__).resolve().parent / "labeler"

_KINDS = ("exclude", "absent", "uncertain", "present")
"""Kinds of phrases of a finding: no mention, denied or doubtful by the phrase itself, plain mention."""
_CUES = (
    "ignore",
    "dismiss",
    "uncertain_first_both",
    "uncertain_first_after",
    "uncertain_first",
    "negated_after",
    "negated",
    "uncertain_after",
    "uncertain_both",
    "uncertain",
    "break",
)
"""Kinds of cue words; where two kinds match at one place, the earlier one counts. A cue acts on what
follows it, with `_after` on what precedes it, with `_both` on both, up to a `break`."""

# Between a finding and a cue behind it ("an effusion is not seen") no other statement may stand.
_VERB = re.compile(r"\b(?:is|are|was|were|has|have)\b")


@dataclasses.dataclass(frozen=True)
class Mention:
    """One place where a sentence speaks of a finding.

    Attributes:
        finding: name of the finding.
        start: first character in the sentence.
        end: one past the last character.
        value: `PRESENT`, `ABSENT` or `UNCERTAIN`.
    """

    finding: str
    start: int
    end: int
    value: int


@dataclasses.dataclass(frozen=True)
class Rules:
    """Compiled phrases; make it with `load_rules`.

    Attributes:
        findings: finding -> pattern with the groups `exclude`, `absent`, `uncertain`, `present`.
        cues: pattern with one group per kind of cue.
        resume: a comma or "and" behind which a negation does not reach.
    """

    findings: Mapping[str, re.Pattern[str]]
    cues: re.Pattern[str]
    resume: re.Pattern[str]


def load_rules(findings: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> Rules:
    """Compiles the phrases of findings and the cue words of `labeler/cues.json`.

    Phrases are regular expressions on lower-case text, matched as whole words; they may hold no groups
    but `(?: )`.

    Args:
        findings: finding -> kind of phrase (`exclude`, `absent`, `uncertain`, `present`) -> phrases; None =
            `labeler/findings.json`.
    """
    if findings is None:
        return load_rules(json.loads((RULE_FOLDER / "findings.json").read_text(encoding="utf-8")))
    cues = json.loads((RULE_FOLDER / "cues.json").read_text(encoding="utf-8"))
    return Rules(
        findings={
            name: _pattern({kind: groups.get(kind, ()) for kind in _KINDS})
            for name, groups in findings.items()
            if any(groups.values())
        },
        cues=_pattern({kind: cues[kind] for kind in _CUES}),
        resume=re.compile("|".join(cues["resume"])),
    )


def _pattern(groups: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    """One pattern of whole words with a named group per kind of phrase."""
    parts = [f"(?P<{kind}>{'|'.join(phrases)})" for kind, phrases in groups.items() if phrases]
    return re.compile(rf"\b(?:{'|'.join(parts)})(?!\w)")


def find_mentions(sentence: str, rules: Rules) -> list[Mention]:
    """Findings that one sentence mentions, each with its value, ordered by label and place.

    Args:
        sentence: one sentence, any case.
        rules: from `load_rules`.
    """
    text = sentence.lower()
    found: list[Mention] = []
    cues: list[tuple[str, int, int]] | None = None
    for name, pattern in rules.findings.items():
        for match in pattern.finditer(text):
            kind = match.lastgroup
            start, end = match.span()
            if kind == "exclude":
                continue
            value: int | None = ABSENT
            if kind != "absent":
                cues = _find_cues(text, rules) if cues is None else cues
                value = _value(text, start, end, cues)
                if kind == "uncertain" and value == PRESENT:
                    value = UNCERTAIN
            if value is not None:
                found.append(Mention(name, start, end, value))
    return found


def _find_cues(text: str, rules: Rules) -> list[tuple[str, int, int]]:
    """Cues of a sentence as (kind, start, end), by place."""
    cues = [(m.lastgroup or "", *m.span()) for m in rules.cues.finditer(text)]
    cues += [("resume", *m.span()) for m in rules.resume.finditer(text)]
    cues += [("break", m.start(), m.end()) for m in re.finditer("[;(]", text)]
    return sorted(cues, key=lambda cue: cue[1])


def _value(text: str, start: int, end: int, cues: Sequence[tuple[str, int, int]]) -> int | None:
    """Value of the mention `text[start:end]`; None when it is no statement about the image."""
    active: set[str] = set()
    for kind, cue_start, cue_end in cues:
        if cue_end <= start:
            if kind == "break":
                active.clear()
            elif kind == "resume":
                active.discard("negated")
            elif not kind.endswith("_after"):
                active.add(kind.removesuffix("_both"))
        elif cue_start >= end:
            if kind == "break":
                break
            if kind.endswith(("_after", "_both")) and not _VERB.search(text, end, cue_start):
                active.add(kind.rpartition("_")[0])
    if "dismiss" in active:
        return None
    for kind, value in (
        ("uncertain_first", UNCERTAIN),
        ("negated", ABSENT),
        ("uncertain", UNCERTAIN),
    ):
        if kind in active:
            return value
    return PRESENT


def label_report(report: str, rules: Rules) -> np.ndarray:
    """The 14 labels of one report.

    Only what describes the image is read: sections such as indication and technique are left out
    where the report has headers.

    Args:
        report: raw or cleaned text with or without headers.
        rules: from `load_rules`.

    Returns:
        int8 [14] in the order of `LABELS`: 1 present, 0 absent, -1 uncertain, -2 not mentioned. A report
        without a word about the image is -2 everywhere.
    """
    values: dict[str, set[int]] = {}
    sentences = described_sentences(report)
    for sentence in sentences:
        for mention in find_mentions(sentence, rules):
            values.setdefault(mention.finding, set()).add(mention.value)
    return _decide(values) if sentences else np.full(len(LABELS), MISSING, np.int8)


def described_sentences(report: str) -> list[str]:
    """Sentences of the parts of a report that describe the image: not indication, technique and so on."""
    return split_sentences(descriptive_text(clean_text(report)))


def _decide(values: Mapping[str, set[int]]) -> np.ndarray:
    """Values of all mentions -> labels: present before uncertain before absent.

    "No Finding" is 1 when no finding but a device is present or uncertain, and nothing else abnormal
    is described; otherwise it is not mentioned.
    """
    label = np.full(len(LABELS), MISSING, np.int8)
    for k, name in enumerate(LABELS):
        for value in (PRESENT, UNCERTAIN, ABSENT):
            if value in values.get(name, ()):
                label[k] = value
                break
    abnormal = any(
        {PRESENT, UNCERTAIN} & found for name, found in values.items() if name != "Support Devices"
    )
    if not abnormal:
        label[0] = PRESENT
    return label


def label_reports(reports: Iterable[str], rules: Rules | None = None) -> np.ndarray:
    """Labels of many reports, int8 [N, 14]; see `label_report`."""
    rules = rules or load_rules()
    rows = [label_report(report, rules) for report in reports]
    return np.stack(rows) if rows else np.zeros((0, len(LABELS)), np.int8)
