"""Triplets (entity, location, existence) of reports, for systems that learn from them such as MedKLIP.

They come from our rules (`report_triplets`) or from RadGraph files that the user has (`read_radgraph`; Jain
et al., arXiv 2106.14463); `triplet_matrix` puts them into the entity and position lists of MedKLIP
(arXiv 2301.02228), or lists of the user's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medvlp_jax.data.labeler import (
    ABSENT,
    MISSING,
    PRESENT,
    UNCERTAIN,
    Rules,
    described_sentences,
    find_mentions,
    load_rules,
)
from medvlp_jax.errors import UserError

VOCABULARY_FOLDER = pathlib.Path(__file__).resolve().parent / "triplets"

UNSPECIFIED, OTHER = "unspecified", "other"
"""Positions of a finding without a location, and of one whose location the list lacks."""

# Between two locations that one finding has ("in the left lower and the right upper lobe").
_LIST = re.compile(r"\s*(?:,|and|or|, and|/)?\s*(?:in |at )?(?:the )?")


class Triplet(NamedTuple):
    """One statement of a report.

    Attributes:
        entity: what is seen or not: a name of the vocabulary (rules), or the words of the report (RadGraph).
        location: likewise; "" when the report names none.
        existence: 1 present, 0 absent, -1 uncertain.
    """

    entity: str
    location: str
    existence: int


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Lists of entities and positions with the phrases that name them; make it with `load_vocabulary`.

    Attributes:
        entities: E names.
        positions: P names, with `"unspecified"` and `"other"`.
        rules: finds the entities in sentences, with negation and uncertainty.
        locations: position -> pattern.
    """

    entities: tuple[str, ...]
    positions: tuple[str, ...]
    rules: Rules
    locations: Mapping[str, re.Pattern[str]]

    def entity(self, text: str) -> str:
        """The entity that a text of one or a few words names, "" for none."""
        for name, pattern in self.rules.findings.items():
            if pattern.search(text.lower()):
                return name
        return ""

    def position(self, text: str) -> str:
        """The position that a text names: the longest match; `OTHER` for an unknown one."""
        if not text.strip():
            return UNSPECIFIED
        found = _locations(text.lower(), self)
        return max(found, key=lambda place: place[2] - place[1])[0] if found else OTHER


def load_vocabulary(source: str | os.PathLike[str] = "medklip") -> Vocabulary:
    """Reads a vocabulary.

    Args:
        source: a name in `data/triplets` ("medklip": the 75 entities and 51 positions in MedKLIP's order;
            `tail_abnorm_obs` and `excluded_obs` have no phrases, so no text names them), or the path of a
            .json file {"entities": {name: [phrases]}, "positions": {name: [phrases]}}; phrases as in
            `labeler.load_rules`.

    Raises:
        UserError: no such file, or not of that form.
    """
    path = pathlib.Path(source)
    if path.suffix != ".json":
        path = VOCABULARY_FOLDER / f"{source}.json"
    content = _read_json(path)
    try:
        entities, positions = content["entities"], content["positions"]
        rules = load_rules({name: {"present": phrases} for name, phrases in entities.items()})
        locations = {
            name: re.compile(rf"\b(?:{'|'.join(phrases)})(?!\w)")
            for name, phrases in positions.items()
            if phrases
        }
    except (KeyError, TypeError, AttributeError, re.error) as error:
        raise UserError(
            f'{path}: expected {{"entities": {{name: [phrases]}}, "positions": {{name: [phrases]}}}} with '
            f"regular expressions as phrases ({error})"
        ) from error
    missing = {UNSPECIFIED, OTHER} - set(positions)
    if missing:
        raise UserError(
            f"{path}: positions lack {', '.join(sorted(missing))}; add them as empty lists"
        )
    return Vocabulary(tuple(entities), tuple(positions), rules, locations)


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get the file again") from error


# ---------------------------------------------------------------------------------------------------
# By rules


def report_triplets(report: str, vocabulary: Vocabulary) -> list[Triplet]:
    """Triplets of one report by rules.

    An entity gets the location nearest to it in its clause, and others that are listed with that one;
    a bilateral finding gives one triplet per side.

    Args:
        report: with or without headers; sections that do not describe the image are left out.
        vocabulary: from `load_vocabulary`.

    Returns:
        Triplets with names of the vocabulary, in the order of the text, without repeats.
    """
    found: dict[Triplet, None] = {}
    for sentence in described_sentences(report):
        text = sentence.lower()
        places = _locations(text, vocabulary)
        cues = vocabulary.rules.cues.finditer(text)
        breaks = [cue.start() for cue in cues if cue.lastgroup == "break"]
        mentions = find_mentions(sentence, vocabulary.rules)
        for mention in sorted(mentions, key=lambda m: m.start):
            near = _nearest(text, mention.start, mention.end, places, breaks)
            for name in near or [UNSPECIFIED]:
                found[Triplet(mention.finding, name, mention.value)] = None
    return list(found)


def _locations(text: str, vocabulary: Vocabulary) -> list[tuple[str, int, int]]:
    """Positions named in a lower-case text as (name, start, end); of nested ones only the longest."""
    places = [
        (name, *match.span())
        for name, pattern in vocabulary.locations.items()
        for match in pattern.finditer(text)
    ]
    return [
        (name, start, end)
        for name, start, end in places
        if not any(a <= start and end <= b and b - a > end - start for _, a, b in places)
    ]


def _nearest(
    text: str,
    start: int,
    end: int,
    places: Sequence[tuple[str, int, int]],
    breaks: Sequence[int],
) -> list[str]:
    """Positions of the mention `text[start:end]`, from `places` that no break separates from it."""
    reachable = [
        place
        for place in places
        if not any(min(end, place[2]) <= b < max(start, place[1]) for b in breaks)
    ]
    if not reachable:
        return []

    def gap(place: tuple[str, int, int]) -> int:
        return max(place[1] - end, start - place[2], 0)

    least = min(map(gap, reachable))
    chosen = [place for place in reachable if gap(place) == least]
    for place in sorted(places, key=lambda p: p[1]):
        listed = any(
            _LIST.fullmatch(text, min(p[2], place[2]), max(p[1], place[1]))
            for p in chosen
            if p[2] <= place[1] or place[2] <= p[1]
        )
        if place not in chosen and listed:
            chosen.append(place)
    return list(dict.fromkeys(name for name, _, _ in chosen))


# ---------------------------------------------------------------------------------------------------
# From RadGraph


def read_radgraph(path: str | os.PathLike[str]) -> dict[str, list[Triplet]]:
    """Triplets of a RadGraph file.

    Args:
        path: JSON of the form {report_id: {"text": ..., "entities": {id: {"tokens", "label", "start_ix",
            "end_ix", "relations": [[kind, id], ...]}}}}: `MIMIC-CXR_graphs.json`, `CheXpert_graphs.json`, the
            output of the `radgraph` package; of files with two annotators (`labeler_1`, `labeler_2`) the
            first one counts.

    Returns:
        report_id as in the file (for MIMIC-CXR `p10/p10000032/s50414267.txt`) -> triplets.

    Raises:
        UserError: not of that form; the message names report and entity.
    """
    file = pathlib.Path(path)
    graphs = _read_json(file)
    if not isinstance(graphs, dict):
        raise UserError(
            f"{file}: expected an object of reports, {{report_id: {{'entities': ...}}}}"
        )
    return {name: _checked_triplets(file, name, graph) for name, graph in graphs.items()}


def _checked_triplets(file: pathlib.Path, name: str, graph: Any) -> list[Triplet]:
    try:
        entities = graph.get("entities", graph.get("labeler_1", {}).get("entities"))
        return list(_graph_triplets(entities))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: report {name!r} is not a RadGraph graph ({type(error).__name__}: {error}); expected "
            '{"entities": {id: {"tokens", "label", "start_ix", "end_ix", "relations"}}}'
        ) from error


def _graph_triplets(entities: Mapping[str, Mapping[str, Any]]) -> Iterator[Triplet]:
    """Triplets of one graph: each observation that is no modifier of another, at each of its anatomies."""
    labels = {key: _label(key, entity["label"]) for key, entity in entities.items()}
    modifiers: dict[str, list[str]] = {}
    for key, entity in entities.items():
        for target in _targets(entity, "modify"):
            if labels[target][0] == labels[key][0]:
                modifiers.setdefault(target, []).append(key)
    used = {key for keys in modifiers.values() for key in keys}
    for key, entity in entities.items():
        kind, existence = labels[key]
        if kind != "observation" or key in used:
            continue
        places = _targets(entity, "located_at")
        for place in places or [None]:
            location = "" if place is None else _words(entities, place, modifiers)
            yield Triplet(str(entity["tokens"]).lower(), location, existence)


def _label(key: str, label: str) -> tuple[str, int]:
    """Kind and existence of both spellings, `OBS-DA` and `Observation::definitely absent`."""
    lower = label.lower()
    kind = {"ana": "anatomy", "obs": "observation"}.get(lower[:3])
    endings = {
        "dp": PRESENT,
        "definitely present": PRESENT,
        "da": ABSENT,
        "definitely absent": ABSENT,
    }
    endings |= {"u": UNCERTAIN, "uncertain": UNCERTAIN}
    existence = endings.get(re.split(r"::|-", lower)[-1])
    if kind is None or existence is None:
        raise ValueError(f"entity {key!r} has the unknown label {label!r}")
    return kind, existence


def _targets(entity: Mapping[str, Any], kind: str) -> list[str]:
    return [
        str(relation[1]) for relation in entity["relations"] if relation and relation[0] == kind
    ]


def _words(
    entities: Mapping[str, Mapping[str, Any]], key: str, modifiers: Mapping[str, Sequence[str]]
) -> str:
    """Words of an anatomy with those that modify it, directly or through another, in their order."""
    keys, queue = {key}, [key]
    while queue:
        fresh = [k for k in modifiers.get(queue.pop(), ()) if k not in keys]
        keys.update(fresh)
        queue.extend(fresh)
    ordered = sorted(keys, key=lambda k: entities[k]["start_ix"])
    return " ".join(str(entities[k]["tokens"]).lower() for k in ordered)


# ---------------------------------------------------------------------------------------------------
# Into lists


def triplet_matrix(triplets: Iterable[Triplet], vocabulary: Vocabulary) -> np.ndarray:
    """Triplets as a table of positions and entities.

    Of several statements about one pair, present comes before uncertain and that before absent. Entities
    that the vocabulary lacks are left out. MedKLIP's own table is this one with -1 for "not mentioned".

    Args:
        triplets: from `report_triplets` or `read_radgraph`.
        vocabulary: whose lists give rows and columns.

    Returns:
        int8 [P, E]: 1 present, 0 absent, -1 uncertain, -2 not mentioned.
    """
    rank = {MISSING: 0, ABSENT: 1, UNCERTAIN: 2, PRESENT: 3}
    row = {name: p for p, name in enumerate(vocabulary.positions)}
    column = {name: e for e, name in enumerate(vocabulary.entities)}
    table = np.full((len(row), len(column)), MISSING, np.int8)
    for entity, location, existence in triplets:
        name = entity if entity in column else vocabulary.entity(entity)
        if not name:
            continue
        place = location if location in row else vocabulary.position(location)
        here = row[place], column[name]
        if rank[existence] > rank[int(table[here])]:
            table[here] = existence
    return table


def entity_existence(matrix: np.ndarray) -> np.ndarray:
    """Existence per entity over all positions, int8 [E], from a `triplet_matrix` [P, E].

    Present anywhere is present; else uncertain, absent, not mentioned.
    """
    result = np.full(matrix.shape[1], MISSING, np.int8)
    for value in (ABSENT, UNCERTAIN, PRESENT):
        result[(matrix == value).any(axis=0)] = value
    return result
