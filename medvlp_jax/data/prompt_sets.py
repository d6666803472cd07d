"""Prompts of labels for zero-shot classification, from the files in `data/prompts` or the user's own.

A file maps labels to prompts, in one of three forms (docs/prompts.md):

    "Edema": {"positive": ["..."], "negative": ["..."]}
    "Edema": {"severity": [...], "subtype": [...], "location": [...], "negative": ["..."]}    (GLoRIA)
    "Oedema": "Edema"                                                                    (the same as)

`"*"` holds the prompts of every label without its own, with `{label}` for the name.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data.reports import stable_id
from medvlp_jax.errors import UserError

PROMPT_FOLDER = pathlib.Path(__file__).resolve().parent / "prompts"
TEMPLATES = "chexzero"
"""Style of labels whose dataset has no file: "{label}" and "no {label}" (CheXzero)."""
_PARTS = ("severity", "subtype", "location")
_SIDES = ("positive", "negative")

PromptSet = dict[str, dict[str, list[str]]]


def prompt_path(source: str) -> pathlib.Path:
    """File of a style or dataset name, or the path itself when it ends in .json."""
    return pathlib.Path(source) if source.endswith(".json") else PROMPT_FOLDER / f"{source}.json"


def load_prompts(
    source: str | os.PathLike[str], labels: Sequence[str], *, number: int = 5, seed: int = 0
) -> PromptSet:
    """Prompts of labels.

    Names are compared without regard to case and underscores ("Pleural_Thickening", "pleural thickening").

    Args:
        source: a name in `data/prompts`, of a style (chexzero, gloria, biovil, descriptions) or a dataset, or
            the path of a .json file.
        labels: wanted labels.
        number: how many of the combinations of severity, subtype and location are drawn per label, all
            different; 0 = all of them. Lists of prompts are always complete.
        seed: of that draw; it depends on nothing but this and the label.

    Returns:
        label -> {"positive": [...], "negative": [...]}; a label or side that the file lacks is absent.

    Raises:
        UserError: no such file, or not of a form above.
    """
    path = prompt_path(str(source))
    content = {_key(name): entry for name, entry in _read(path).items()}
    found: PromptSet = {}
    for label in labels:
        entry = content.get(_key(label), content.get("*"))
        if isinstance(entry, str):
            entry = content.get(_key(entry))
            if not isinstance(entry, Mapping):
                raise UserError(
                    f"{path}: label {label!r} is the same as a label that has no prompts"
                )
        if entry is not None:
            found[label] = _sides(path, label, entry, number, seed)
    return found


def _key(name: str) -> str:
    return name.replace("_", " ").casefold()


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in PROMPT_FOLDER.glob("*.json"))) or "none"
        raise UserError(
            f"prompt file {path} does not exist; give the path of a .json file, 'templates', or one of "
            f"{known}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"prompt file {path}: expected an object of labels")
    return content


def _sides(
    path: pathlib.Path, label: str, entry: Mapping[str, Any], number: int, seed: int
) -> dict[str, list[str]]:
    """Positive and negative prompts of one entry, with the label's name filled in."""
    known = (*_SIDES, *_PARTS)
    for side, texts in entry.items():
        whole = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if side not in known or not whole:
            raise UserError(
                f"prompt file {path}: label {label!r} has {side!r}; expected lists of texts under "
                f"{', '.join(known)}"
            )
    name = label.replace("_", " ").lower()
    sides = {
        side: [text.replace("{label}", name) for text in entry[side]]
        for side in _SIDES
        if side in entry
    }
    if any(part in entry for part in _PARTS):
        parts = [entry.get(part) or [""] for part in _PARTS]
        composed = [" ".join(" ".join(words).split()) for words in itertools.product(*parts)]
        sides["positive"] = [*sides.get("positive", ()), *_draw(composed, label, number, seed)]
    return sides


def _draw(prompts: Sequence[str], label: str, number: int, seed: int) -> list[str]:
    """`number` different prompts in the order of the file."""
    distinct = list(dict.fromkeys(prompts))
    if not number or number >= len(distinct):
        return distinct
    rng = np.random.default_rng([seed, stable_id(_key(label))])
    chosen = rng.choice(len(distinct), number, replace=False)
    return [distinct[k] for k in sorted(chosen)]
