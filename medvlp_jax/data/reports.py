"""Radiology report text: cleaning, sections, sentences, and stable ids of texts and patients."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

SECTION_HEADERS = {
    "findings": ("findings", "finding", "findings and impression", "report", "narrative"),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "summary",
        "final impression",
    ),
    "indication": (
        "indication",
        "indications",
        "history",
        "clinical history",
        "clinical information",
        "clinical indication",
        "reason for exam",
        "reason for examination",
        "reason for study",
    ),
    "comparison": ("comparison", "comparisons", "comparison study", "prior studies"),
    "technique": ("technique", "procedure", "technique and findings"),
    "examination": ("examination", "exam", "study", "final report", "type of examination"),
    "recommendation": ("recommendation", "recommendations", "notification", "notifications"),
}
"""Section name -> header words that open it, in lower case."""

_SECTION_OF = {word: name for name, words in SECTION_HEADERS.items() for word in words}
_WORDS = "|".join(sorted((re.escape(w) for w in _SECTION_OF), key=len, reverse=True))
# A header is a known phrase with a colon: in capitals anywhere ("... effusion. IMPRESSION: normal"), in
# other case only at the start of a line or sentence, so that "no new findings: ..." is not one.
_HEADER = re.compile(rf"(?:(?:^|\n|[.!?]\s)\s*(?i:({_WORDS}))|\b({_WORDS.upper()}))\s*:[ \t]*")

# Four capitals are a mask even within a word: Open-i has "XXXXPM" and "comparisXXXX".
_MASK = re.compile(r"-?(?:\[\*\*.*?\*\*\]|X{4,}|(?<![A-Za-z])(?:XXX|x{4,})(?![A-Za-z])|_{2,})-?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u2028-\u202e\ufeff]")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})

_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st vs approx fig figs cf etc e.g i.e a.p p.a ca resp incl no.s pt".split()  # noqa: SIM905
)
_LIST_MARK = r"(?:\(?\d{1,2}[.)]|[-*\u2022])"
_LIST_LINE = re.compile(rf"\n\s*{_LIST_MARK}\s+|\n\s*\n")
# "1. Normal heart. 2. No effusion." in one line: a number that follows the end of a sentence or starts
# the text ("measures 2. 5 cm" and the date "12. 3. 2019" do neither).
_LIST_INLINE = re.compile(
    r"(?:(?<=[^\d\s][.!?])\s+|(?<=[;:.])\s+(?=\d+[.)] [A-Z])|^\s*)"
    r"\(?\d{1,2}[.)](?:\s+(?=\S)|(?=[A-Z][a-z]))"
)
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*\s+")


def clean_text(text: str, mask: str = "") -> str:
    """Normalises a report without changing its words.

    De-identification masks of the public corpora (`XXXX` of Open-i, `___` and `[** **]` of MIMIC)
    become `mask`; HTML entities, typographic quotes, control characters and repeated blanks are
    normalised; line breaks stay, because sections and lists need them.

    Args:
        text: any report.
        mask: what replaces a run of masks; the default removes them.

    Returns:
        The text, NFC-normalised and stripped.
    """
    text = unicodedata.normalize("NFC", html.unescape(text)).translate(_QUOTES)
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _MASK.sub(f" {mask} " if mask else " ", text)
    if mask:
        text = re.sub(rf"(?:{re.escape(mask)}\s+){{2,}}", f"{mask} ", text)
    # A removed mask leaves its separators behind: "( )", ", ,", "..".
    text = re.sub(r"\(\s*\)|\[\s*\]|<\s*>", " ", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" +([.,;:!?)])", r"\1", text)
    text = re.sub(r" *\n *", "\n", text)
    text = re.sub(r"([,;])[,;]+", r"\1", text)
    text = re.sub(r"(?<!\.)\.\.(?!\.)", ".", text)
    return text.strip()


def split_sections(report: str) -> dict[str, str]:
    """Splits a report at its headers.

    Args:
        report: text with headers such as `FINDINGS:`; see `SECTION_HEADERS` for the known ones.

    Returns:
        Section name -> text, in the order of the report; text before the first header is `"other"`.
        Sections that occur twice are joined by a space. Without any header: an empty dict.
    """
    matches = list(_HEADER.finditer(report))
    if not matches:
        return {}
    sections: dict[str, str] = {}
    names = ["other", *(_SECTION_OF[(m.group(1) or m.group(2)).lower()] for m in matches)]
    starts = [0, *(m.end() for m in matches)]
    # The full stop that made the next header a sentence start belongs to the section before.
    ends = [m.start() + (m.group()[0] in ".!?") for m in matches] + [len(report)]
    pieces = [(n, report[a:b]) for n, a, b in zip(names, starts, ends, strict=True)]
    for name, text in pieces:
        text = " ".join(text.split())
        if text.strip(" .:_-"):
            sections[name] = f"{sections[name]} {text}" if name in sections else text
    return sections


def split_sentences(text: str) -> list[str]:
    """Splits report text into sentences.

    A sentence ends at `.`, `!` or `?` before white space, at an empty line and at a list item; not
    after an abbreviation ("Dr. Smith"), an initial, inside a number ("2.5 cm", also the "2. 5 cm"
    that de-identification leaves behind). List numbers ("1. Normal heart. 2. ...") and pieces without
    a letter are dropped.

    Args:
        text: a report or one section, without headers.

    Returns:
        Sentences in order, blanks collapsed; empty for text without a letter.
    """
    sentences = []
    for item in _LIST_LINE.split("\n" + text):
        for piece in _LIST_INLINE.split(" ".join(item.split())):
            sentences.extend(_split_at_full_stops(piece))
    return [s for s in sentences if any(c.isalpha() for c in s)]


def _split_at_full_stops(text: str) -> list[str]:
    """Splits one line of running text."""
    pieces, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        before = text[start : match.start()].rpartition(" ")[2].lstrip("([\"'")
        follows = text[match.end() : match.end() + 1]
        is_number = before[-1:].isdigit() and follows.isdigit()
        is_initial = len(before) == 1 and before.isupper()
        if match.group().startswith(".") and (
            is_number or is_initial or before.lower() in _ABBREVIATIONS
        ):
            continue
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    pieces.append(text[start:].strip())
    return [p for p in pieces if p]


def normalise_for_id(text: str) -> str:
    """Form of a text in which equal reports are equal: case, punctuation, blanks, masks removed."""
    text = unicodedata.normalize("NFKD", _MASK.sub(" ", text)).casefold()
    return " ".join(re.findall(r"[^\W_]+", text))


def stable_id(text: str) -> int:
    """Hash of a string in [0, 2**31), the same in every process and release (BLAKE2b)."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF
