"""From a radiology report to the text features of an example."""

from __future__ import annotations

import re

from medvlp_jax.data.reports import split_sections

_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def report_fields(report: str) -> dict[str, str]:
    """Features text, findings, impression, indication and comparison of a whole report.

    The text is the findings and the impression, which describe the image. A report that has neither header
    gives its last paragraph, as the section rules published with MIMIC-CXR do.

    Args:
        report: as published, with its de-identification masks.
    """
    sections = split_sections(report)
    fields = section_fields(sections.get("findings", ""), sections.get("impression", ""))
    if not fields["text"]:
        paragraphs = [" ".join(p.split()) for p in _PARAGRAPH.split(report)]
        fields["text"] = next((p for p in reversed(paragraphs) if p), "")
    other = {name: sections.get(name, "") for name in ("indication", "comparison")}
    return {**fields, **other}


def section_fields(findings: str, impression: str) -> dict[str, str]:
    """Features text, findings and impression of two sections, either of which may be blank."""
    findings, impression = findings.strip(), impression.strip()
    named = (("FINDINGS", findings), ("IMPRESSION", impression))
    text = "\n".join(f"{name}: {part}" for name, part in named if part)
    return {"text": text, "findings": findings, "impression": impression}
