"""The population: patients, their diseases over time, and what is said about them with certainty.

A patient is a function of (seed, index) alone, so any part of the corpus can be made by any process in
any order. A study holds the true state at one date; the report and the questions are written from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfds_builders.synthetic_cxr import labels as L
from tfds_builders.synthetic_cxr.anatomy import Shape, sample_shape
from tfds_builders.synthetic_cxr.findings import Finding, Part

SINGLE_RATE: dict[int, float] = {
    L.ATELECTASIS: 0.10,
    L.CARDIOMEGALY: 0.07,
    L.CONSOLIDATION: 0.10,
    L.EDEMA: 0.05,
    L.EFFUSION: 0.08,
    L.PNEUMOTHORAX: 0.075,
    L.NODULE: 0.105,
    L.FRACTURE: 0.06,
    L.DEVICE: 0.09,
    L.EMPHYSEMA: 0.06,
    L.HERNIA: 0.09,
    L.THICKENING: 0.10,
    L.SCOLIOSIS: 0.10,
    L.ELEVATION: 0.095,
}
"""Chance of each finding on its own, before the syndromes of `_SYNDROMES` add to it."""

_SYNDROMES: tuple[tuple[float, dict[int, float]], ...] = (
    (
        0.11,
        {L.CARDIOMEGALY: 0.85, L.EDEMA: 0.65, L.EFFUSION: 0.55, L.DEVICE: 0.25},
    ),  # heart failure
    (
        0.07,
        {L.DEVICE: 0.9, L.CONSOLIDATION: 0.4, L.ATELECTASIS: 0.45, L.EFFUSION: 0.3},
    ),  # intensive care
    (0.06, {L.FRACTURE: 0.8, L.PNEUMOTHORAX: 0.4, L.EFFUSION: 0.2}),  # trauma
    (0.07, {L.EMPHYSEMA: 0.9, L.NODULE: 0.25, L.PNEUMOTHORAX: 0.12}),  # smoker
)
"""Chance of a syndrome, and of each finding given the syndrome: the source of co-occurrence."""

TRANSIENT = frozenset(
    {L.ATELECTASIS, L.CONSOLIDATION, L.EDEMA, L.EFFUSION, L.PNEUMOTHORAX, L.DEVICE}
)
"""Findings that come and go between studies; the others persist."""

_HEDGED_MIMIC = {"nipple": L.NODULE, "skin fold": L.PNEUMOTHORAX, "crossing": L.FRACTURE}


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """How hard the corpus is to read; the defaults are those of the benchmark.

    Attributes:
        severities: chances of mild, moderate and severe findings.
        extent: factor on the size of every focal finding (`_FOCAL`).
        opacity: factor on how much a finding changes the attenuation.
        mimics: factor on the rate of harmless look-alikes.
        lateral: chance that a study also has a lateral view.
        single_rate: factor on the chance of each finding on its own.
        spread: factor on how much builds, poses and display windows vary.
        chatter: factor on how much a report says beyond the findings that are there: denials,
            hedges, irrelevant sentences.
    """

    severities: tuple[float, float, float] = (0.18, 0.45, 0.37)
    extent: float = 1.0
    opacity: float = 1.0
    mimics: float = 1.0
    lateral: float = 0.12
    single_rate: float = 1.0
    spread: float = 1.0
    chatter: float = 1.0


BENCHMARK = Difficulty()
"""Hard: the findings range from subtle to gross and harmless look-alikes abound."""

EASY = Difficulty(
    severities=(0.06, 0.34, 0.60),
    extent=1.25,
    opacity=1.5,
    mimics=0.4,
    lateral=0.06,
    single_rate=0.85,
    spread=0.6,
    chatter=0.5,
)
"""Clear findings, but still mild ones, look-alikes and lateral views among them."""

VIVID = Difficulty(
    severities=(0.0, 0.0, 1.0),
    extent=1.4,
    opacity=2.2,
    mimics=0.0,
    lateral=0.0,
    spread=0.5,
    chatter=0.3,
)
"""For the quick start: gross findings on frontal views, which a model learns within minutes on a CPU."""

_FOCAL = frozenset(
    {
        L.ATELECTASIS,
        L.CONSOLIDATION,
        L.PNEUMOTHORAX,
        L.NODULE,
        L.FRACTURE,
        L.DEVICE,
        L.HERNIA,
        L.THICKENING,
    }
)
"""Findings of a size of their own; the others are changes of an organ, whose size has limits."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One visit. All sets and keys are label indices.

    Attributes:
        study_id, prior_study_id: ids; the prior is "" in the first study.
        days: days since the patient's first study.
        age: in years.
        findings: what is truly there.
        hedged: labels that the report leaves uncertain; with or without a true finding behind them.
        changes: per present label "new", "worse", "improved" or "unchanged"; empty in a first study.
        resolved: findings of the prior study that are gone.
        mimics: harmless look-alikes (kind, side, seed).
        views: views taken, PA first.
        chatter: how much the report says beyond what is there, 1 = usual.
        breath: how much deeper than usual the patient inhaled, in half image widths.
        seed: seed of everything that is not the patient's state (exposures, wording, questions).
    """

    study_id: str
    prior_study_id: str
    days: int
    age: int
    findings: tuple[Finding, ...]
    hedged: frozenset[int]
    changes: dict[int, str]
    resolved: tuple[Finding, ...]
    mimics: tuple[tuple[str, int, int], ...]
    views: tuple[str, ...]
    chatter: float
    breath: float
    seed: int

    def finding(self, label: int) -> Finding | None:
        """The finding with this label, if it is there."""
        return next((finding for finding in self.findings if finding.label == label), None)

    def label(self) -> np.ndarray:
        """Label vector int8 [K]: the truth, and -1 where the report hedges."""
        out = np.zeros(len(L.LABEL_NAMES), np.int8)
        for finding in self.findings:
            out[finding.label] = L.PRESENT
        for label in self.hedged:
            out[label] = L.UNCERTAIN
        return out


@dataclasses.dataclass(frozen=True)
class Patient:
    """A person with several studies; `shape` is the build without any finding."""

    subject_id: str
    female: bool
    shape: Shape
    studies: tuple[Study, ...]


def sample_patient(seed: int, index: int, difficulty: Difficulty) -> Patient:
    """The patient number `index` of the corpus `seed`, with all studies."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    female = bool(rng.random() < 0.5)
    age = int(np.clip(rng.normal(58, 17), 18, 94))
    shape = sample_shape(rng, female=female, age=age, spread=difficulty.spread)
    subject_id = f"p{seed:03d}{index:06d}"
    studies: list[Study] = []
    state: dict[int, Finding] = {}
    syndrome = _sample_syndrome(rng)
    days = 0
    for number in range(int(rng.choice(4, p=(0.45, 0.30, 0.15, 0.10))) + 1):
        before = state
        if number == 0:
            state = _first_state(rng, syndrome, difficulty)
        else:
            days += int(np.ceil(np.exp(rng.normal(3.0, 1.6))))
            state = _next_state(rng, before, syndrome, difficulty)
        state = _settle(state)
        mimics = _sample_mimics(rng, female, difficulty.mimics)
        study_id = f"{subject_id}s{number:02d}"
        studies.append(
            Study(
                study_id=study_id,
                prior_study_id=studies[-1].study_id if studies else "",
                days=days,
                age=age + days // 365,
                findings=tuple(state[label] for label in sorted(state)),
                hedged=_sample_hedges(rng, state, mimics, difficulty.chatter),
                changes=_changes(before, state) if number else {},
                resolved=tuple(before[k] for k in sorted(set(before) - set(state))),
                mimics=mimics,
                views=("PA", "LATERAL") if rng.random() < difficulty.lateral else ("PA",),
                chatter=difficulty.chatter,
                breath=float(0.018 * rng.standard_normal()),
                seed=int(rng.integers(1 << 31)),
            )
        )
    return Patient(subject_id, female, shape, tuple(studies))


def _sample_syndrome(rng: np.random.Generator) -> dict[int, float]:
    draw = rng.random()
    for chance, extra in _SYNDROMES:
        if draw < chance:
            return extra
        draw -= chance
    return {}


def _chance(label: int, syndrome: dict[int, float], difficulty: Difficulty) -> float:
    alone = SINGLE_RATE[label] * difficulty.single_rate
    return 1.0 - (1.0 - alone) * (1.0 - syndrome.get(label, 0.0))


def _first_state(
    rng: np.random.Generator, syndrome: dict[int, float], difficulty: Difficulty
) -> dict[int, Finding]:
    state = {}
    for label in range(len(L.LABEL_NAMES)):
        if rng.random() < _chance(label, syndrome, difficulty):
            state[label] = sample_finding(rng, label, difficulty)
    return state


def _next_state(
    rng: np.random.Generator,
    before: dict[int, Finding],
    syndrome: dict[int, float],
    difficulty: Difficulty,
) -> dict[int, Finding]:
    """Ages every finding, then lets new ones appear."""
    state = {}
    for label in range(len(L.LABEL_NAMES)):
        finding = before.get(label)
        if finding is not None:
            aged = _age(rng, finding)
            if aged is not None:
                state[label] = aged
        elif rng.random() < _chance(label, syndrome, difficulty) * (
            0.6 if label in TRANSIENT else 0.12
        ):
            state[label] = sample_finding(rng, label, difficulty)
    return state


def _age(rng: np.random.Generator, finding: Finding) -> Finding | None:
    """The finding at the next study; None when it resolved."""
    draw = rng.random()
    if finding.label == L.DEVICE:
        kept = tuple(
            part
            for part in finding.parts
            if part.kind in ("pacemaker", "port", "sternal wires") or rng.random() < 0.6
        )
        return dataclasses.replace(finding, parts=kept) if kept else None
    if finding.label in TRANSIENT:
        step = -3 if draw < 0.22 else -1 if draw < 0.45 else 0 if draw < 0.70 else 1
    else:
        step = 1 if draw < 0.12 and finding.label not in (L.SCOLIOSIS, L.FRACTURE) else 0
    severity = min(3, finding.severity + step)
    return dataclasses.replace(finding, severity=severity) if severity > 0 else None


def _settle(state: dict[int, Finding]) -> dict[int, Finding]:
    """Removes contradictions: a lung that is filled or collapsed hides what else is in it."""
    state = dict(state)
    effusion, hidden = (
        state.get(L.EFFUSION),
        (L.CONSOLIDATION, L.ATELECTASIS, L.NODULE, L.ELEVATION),
    )
    if effusion is not None and effusion.severity == 3:
        sides = {part.side for label in hidden if label in state for part in state[label].parts}
        if sides & {part.side for part in effusion.parts}:
            state[L.EFFUSION] = dataclasses.replace(effusion, severity=2)
    air = state.get(L.PNEUMOTHORAX)
    if air is not None and L.THICKENING in state:
        sides = {part.side for part in state[L.THICKENING].parts}
        if sides & {part.side for part in air.parts}:
            moved = tuple(dataclasses.replace(p, side=L.RIGHT + L.LEFT - p.side) for p in air.parts)
            state[L.PNEUMOTHORAX] = dataclasses.replace(air, parts=moved)
    return state


def _changes(before: dict[int, Finding], state: dict[int, Finding]) -> dict[int, str]:
    changes = {}
    for label, finding in state.items():
        prior = before.get(label)
        if prior is None:
            changes[label] = "new"
        elif finding.severity != prior.severity:
            changes[label] = "worse" if finding.severity > prior.severity else "improved"
        else:
            changes[label] = "unchanged"
    return changes


def _sample_mimics(
    rng: np.random.Generator, female: bool, factor: float
) -> tuple[tuple[str, int, int], ...]:
    rates = {
        "nipple": 0.10,
        "skin fold": 0.10,
        "granuloma": 0.12,
        "crossing": 0.15,
        "braid": 0.05 if female else 0.0,
    }
    out = []
    for kind, rate in rates.items():
        draw, side, seed = rng.random(), int(rng.choice((L.RIGHT, L.LEFT))), rng.integers(1 << 31)
        if draw < rate * factor:
            out.append((kind, side, int(seed)))
    return tuple(out)


def _sample_hedges(
    rng: np.random.Generator,
    state: dict[int, Finding],
    mimics: tuple[tuple[str, int, int], ...],
    chatter: float,
) -> frozenset[int]:
    """Labels the reader is not sure of: subtle findings, look-alikes, and the odd doubt."""
    hedged = set()
    for label in sorted(state):
        subtle = state[label].severity == 1 and label not in (L.DEVICE, L.SCOLIOSIS)
        if subtle and rng.random() < 0.3 * chatter:
            hedged.add(label)
    for kind, _, _ in mimics:
        label = _HEDGED_MIMIC.get(kind)
        if label is not None and label not in state and rng.random() < 0.25 * chatter:
            hedged.add(label)
    for label, rate in ((L.CONSOLIDATION, 0.015), (L.EDEMA, 0.015), (L.ATELECTASIS, 0.02)):
        if label not in state and rng.random() < rate * chatter:
            hedged.add(label)
    return frozenset(hedged)


def sample_finding(rng: np.random.Generator, label: int, difficulty: Difficulty) -> Finding:
    """Draws severity, place and form of a finding."""
    severity = int(rng.choice((1, 2, 3), p=difficulty.severities))
    if label in (L.CARDIOMEGALY, L.HERNIA):
        parts = (_part(rng, L.MIDLINE, spread=0.04),)
    elif label in (L.EDEMA, L.EMPHYSEMA):
        parts = tuple(_part(rng, side) for side in (L.RIGHT, L.LEFT))
    else:
        parts = _SAMPLERS[label](rng, severity)
    if label in _FOCAL:
        parts = tuple(dataclasses.replace(p, size=p.size * difficulty.extent) for p in parts)
    return Finding(label, severity, parts)


def _side(rng: np.random.Generator) -> int:
    return int(rng.choice((L.RIGHT, L.LEFT)))


def _part(
    rng: np.random.Generator,
    side: int,
    *,
    kind: str = "",
    height: tuple[float, float] = (0.15, 0.9),
    lateral: tuple[float, float] = (0.25, 0.85),
    spread: float = 0.1,
) -> Part:
    return Part(
        side=side,
        kind=kind,
        height=float(rng.uniform(*height)),
        lateral=float(rng.uniform(*lateral)),
        depth=float(rng.uniform(0.1, 0.9)),
        size=float(1.0 + spread * np.clip(rng.standard_normal(), -2.0, 2.0)),
        seed=int(rng.integers(1 << 31)),
    )


def _effusion(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    sides = (L.RIGHT, L.LEFT) if severity < 3 and rng.random() < 0.35 else (_side(rng),)
    return tuple(_part(rng, side) for side in sides)


def _pneumothorax(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    return (_part(rng, _side(rng)),)


def _consolidation(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    parts = [_part(rng, _side(rng), height=(0.12, 0.92))]
    if rng.random() < 0.25:
        parts.append(_part(rng, L.RIGHT + L.LEFT - parts[0].side, height=(0.12, 0.92)))
    return tuple(parts)


def _nodule(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    count = int(rng.choice((1, 2, 3, 4), p=(0.55, 0.2, 0.15, 0.10)))
    kind = "calcified" if rng.random() < 0.3 else ""
    return tuple(
        _part(rng, _side(rng), kind=kind, lateral=(0.3, 0.88), height=(0.12, 0.92))
        for _ in range(count)
    )


def _fracture(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    side = _side(rng)
    if rng.random() < 0.2:
        return (_part(rng, side, kind="clavicle"),)
    count = int(rng.integers(1, 3)) + severity
    first, place = rng.uniform(0.05, 0.35), float(rng.uniform(0.2, 0.95))
    return tuple(
        dataclasses.replace(
            _part(rng, side, kind="rib"),
            height=float(min(0.99, first + index / 6.0)),
            lateral=float(np.clip(place + 0.04 * rng.standard_normal(), 0.0, 1.0)),
        )
        for index in range(count)
    )


def _atelectasis(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    if severity > 1 and rng.random() < 0.5:
        return (_part(rng, _side(rng), kind="lobar", height=(0.85, 0.98)),)
    sides = (L.RIGHT, L.LEFT) if rng.random() < 0.25 else (_side(rng),)
    return tuple(
        _part(rng, side, kind="plate", height=(0.70, 0.86), lateral=(0.35, 0.65)) for side in sides
    )


def _thickening(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    side = _side(rng)
    if rng.random() < 0.35:
        sides = (L.RIGHT, L.LEFT) if rng.random() < 0.4 else (side,)
        return tuple(_part(rng, one, kind="apical", height=(0.02, 0.1)) for one in sides)
    return (_part(rng, side, kind="lateral", height=(0.4, 0.75)),)


def _one_side(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    return (_part(rng, _side(rng)),)


def _device(rng: np.random.Generator, severity: int) -> tuple[Part, ...]:
    kinds = (
        "tube",
        "central line",
        "feeding tube",
        "pacemaker",
        "port",
        "chest tube",
        "sternal wires",
    )
    rates = (0.18, 0.22, 0.10, 0.20, 0.12, 0.06, 0.12)
    count = int(rng.choice((1, 2, 3), p=(0.6, 0.27, 0.13)))
    chosen = rng.choice(len(kinds), size=count, replace=False, p=rates)
    parts = []
    for index in sorted(int(number) for number in chosen):
        kind = kinds[index]
        side = L.MIDLINE
        if kind in ("central line", "port", "chest tube"):
            side = L.RIGHT if rng.random() < 0.65 else L.LEFT
        elif kind == "pacemaker":
            side = L.LEFT if rng.random() < 0.8 else L.RIGHT
        parts.append(_part(rng, side, kind=kind))
    return tuple(parts)


_SAMPLERS = {
    L.EFFUSION: _effusion,
    L.PNEUMOTHORAX: _pneumothorax,
    L.CONSOLIDATION: _consolidation,
    L.NODULE: _nodule,
    L.FRACTURE: _fracture,
    L.ATELECTASIS: _atelectasis,
    L.THICKENING: _thickening,
    L.SCOLIOSIS: _one_side,
    L.ELEVATION: _one_side,
    L.DEVICE: _device,
}
