"""What a published split puts into several parts, though it belongs together."""

from __future__ import annotations

from collections.abc import Iterable

from tfds_builders.manual_builder import Record


def leak_notes(records: Iterable[Record], what: str = "articles have figures") -> tuple[str, ...]:
    """What the build says about subjects in several parts, as `Corpus.notes`; () when there are none.

    Args:
        records: examples with their `subject_id`, "" where unknown.
        what: subjects and what they have, for the message.
    """
    splits: dict[str, str] = {}
    shared: set[str] = set()
    for record in records:
        subject = record.subject_id
        if subject and splits.setdefault(subject, record.split) != record.split:
            shared.add(subject)
    if not shared:
        return ()
    return (f"warning: {len(shared)} {what} in more than one of the published splits",)
