"""The README.md of an exported model: what it is, how well it does, and what it is not for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_CLINICAL = "**Not for clinical use.**"


def model_card(
    *,
    title: str,
    config: Mapping[str, Any],
    dataset: Mapping[str, str],
    metrics: Mapping[str, Any],
    evaluated_on: str,
    usage: str = "",
    notes: Sequence[str] = (),
    what: str = "Image and text encoder",
    library: str = "transformers",
    pipeline: str = "zero-shot-image-classification",
) -> str:
    """Markdown with the metadata block that model hubs read.

    Args:
        title: name of the model.
        config: full config, nested plain values.
        dataset: facts about the training data, shown in this order: name, description, licence, access,
            citation ... (e.g. from a `DatasetSpec`).
        metrics: `task/dataset/metric` -> a `Metric` or a mapping with value, low, high and n.
        evaluated_on: e.g. `"synthetic_cxr, split test (held-out patients)"`.
        usage: Markdown with the code that loads the model.
        notes: further limits, one sentence each.
        what: what the folder holds.
        library, pipeline: of the metadata block.
    """
    sections = [
        _front_matter(library, pipeline),
        f"# {title}",
        f"{NOT_CLINICAL} A research model: no regulator has assessed it, and its scores are no diagnosis.",
        f"{what} trained with medvlp_jax by contrasting medical images and their texts.",
        _section("Usage", usage),
        _section("Intended use", _INTENDED),
        _section("Training data", _facts(dataset)),
        _section("Evaluation", _table(metrics, evaluated_on)),
        _section("Limits", _bullets([*_LIMITS, *notes])),
        _section("Licence", _LICENCE),
        _section("Config", f"```json\n{json.dumps(config, indent=2, sort_keys=True)}\n```"),
    ]
    return "\n\n".join(part for part in sections if part) + "\n"


_INTENDED = """\
Research on medical vision-language models: zero-shot classification, retrieval, and as a starting point for
fine-tuning. Not for diagnosis, triage, treatment or any other decision about a patient."""

_LIMITS = (
    "It knows the hospitals, devices and patients of its training data; on others expect worse results.",
    "Its probabilities are not calibrated, and zero-shot scores depend on how a prompt is worded.",
    "It was not tested for differences between groups of patients.",
    "Reports are a noisy label: what they leave unsaid, the model may have learned as absent.",
)

_LICENCE = """\
Weights: [licence to be named by whoever publishes them; the licence of the training data may restrict it]
Code: Apache-2.0."""


def _front_matter(library: str, pipeline: str) -> str:
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "license: other",
            f"pipeline_tag: {pipeline}",
            "tags: [medical, vision-language, research-only]",
            "---",
        ]
    )


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _facts(dataset: Mapping[str, str]) -> str:
    return _bullets(
        [f"{key.replace('_', ' ')}: {value}" for key, value in dataset.items() if value]
    )


def _table(metrics: Mapping[str, Any], evaluated_on: str) -> str:
    """Metrics with their intervals; those without a value are left out."""
    if not metrics:
        return "Not evaluated."
    rows = [
        f"On {evaluated_on}. Intervals: 95 % bootstrap, patients resampled.",
        "",
        "| metric | value | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for key, metric in metrics.items():
        value, low, high, n = (_get(metric, name) for name in ("value", "low", "high", "n"))
        if value is None or not math.isfinite(value):
            continue
        interval = "" if low is None or not math.isfinite(low) else f"{low:.3f} to {high:.3f}"
        rows.append(f"| {key} | {value:.3f} | {interval} | {n} |")
    return "\n".join(rows)


def _get(metric: Any, name: str) -> Any:
    return metric.get(name) if isinstance(metric, Mapping) else getattr(metric, name, None)
