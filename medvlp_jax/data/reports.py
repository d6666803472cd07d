"""Radiology report text: cleaning, sections, sentences, and stable ids of texts and patients."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable

SECTION_HEADERS = {
    "findings": (
        "findings",
        "finding",
        "finding(s)",
        "findings and impression",
        "findings and impressions",
        "findings & impression",
        "findings/impression",
        "findings/ impression",
        "findings / impression",
        "impression and findings",
        "technique and findings",
        "reference findings",
        "report",
        "narrative",
        "findins",
        "findngs",
        "finidngs",
        "findnings",
    ),
    "impression": (
        "impression",
        "impressions",
        "impression(s)",
        "conclusion",
        "conclusions",
        "conclusion(s)",
        "opinion",
        "summary",
        "final impression",
        "impression and recommendation",
        "impression and recommendations",
        "impression/recommendation",
        "impression/recommendations",
        "impresion",
        "impresson",
        "imression",
        "imperssion",
        "impession",
        "imprssion",
    ),
    "indication": (
        "indication",
        "indications",
        "indication(s)",
        "history",
        "clinical history",
        "patient history",
        "clinical information",
        "clinical indication",
        "clinical data",
        "clinical statement",
        "clinical question",
        "chief complaint",
        "history and indication",
        "indication/history",
        "history/indication",
        "reason for exam",
        "reason for the exam",
        "reason for this exam",
        "reason for examination",
        "reason for the examination",
        "reason for this examination",
        "reason for study",
        "idication",
    ),
    "comparison": (
        "comparison",
        "comparisons",
        "comparison(s)",
        "comparison study",
        "comparison studies",
        "comparison exam",
        "comparison film",
        "comparison films",
        "reference exam",
        "prior study",
        "prior studies",
        "prior exams",
        "recent prior study",
        "comparision",
        "comparisions",
        "comparsion",
        "comparrison",
    ),
    "technique": ("technique", "techniques", "procedure", "number of views"),
    "examination": (
        "examination",
        "exam",
        "study",
        "final report",
        "type of examination",
        "type of exam",
        "exam type",
        "exam date",
        "date",
        "date of exam",
    ),
    "recommendation": (
        "recommendation",
        "recommendations",
        "recommendation(s)",
        "notification",
        "notifications",
        "notification(s)",
    ),
    "wet_read": ("wet read", "wetread", "wet reading", "preliminary report", "preliminary read"),
    "addendum": ("addendum", "addenda"),
    "comment": ("comment", "comments", "note"),
}
"""Section name -> header words that open it, in lower case (with spellings that MIMIC-CXR is known for)."""

DESCRIPTIVE_SECTIONS = ("findings", "impression", "wet_read", "addendum", "comment", "other")
"""Sections that describe the image; the others say what was asked, done or told to whom."""

_SECTION_OF = {word: name for name, words in SECTION_HEADERS.items() for word in words}
_CAPITALS = [word.upper() for word in _SECTION_OF]


def _any_of(words: Iterable[str]) -> str:
    """Pattern of fixed phrases, the longest first."""
    return "|".join(sorted((re.escape(w) for w in words), key=len, reverse=True))


# A header is a known phrase with a colon: in capitals anywhere ("... effusion. IMPRESSION: normal"), in
# other letters only at the start of a line or sentence, so that "no new findings: ..." is not one; or a
# phrase in capitals alone on its line.
_HEADER = re.compile(
    rf"(?:(?:^|\n|[.!?]\s)\s*(?i:({_any_of(_SECTION_OF)}))|\b({_any_of(_CAPITALS)}))\s*:[ \t]*"
    rf"|(?:^|\n)[ \t]*({_any_of(_CAPITALS)})[ \t]*(?=\n)"
)
# "PORTABLE CHEST, TWO VIEWS: The lungs ..." stands for findings where no header says so; so do the organs
# of a list. Within findings such words are no headers.
_VIEW_HEADER = re.compile(
    r"(?:^|\n)[ \t]*(?=[^:\n]*\b(?:CHEST|PORTABLE|FRONTAL|LATERAL|LAT|PA|AP|UPRIGHT|VIEWS?|RADIOGRAPHS?|"
    r"X-?RAYS?|RIBS|LUNGS?|HEART|CARDIAC|PLEURA|MEDIASTINUM|BONES|TUBES)\b)"
    r"[A-Z][A-Z0-9 ()/,&.'-]{2,80}:[ \t]*"
)

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
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
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
    sections: dict[str, str] = {}
    for name, text in _section_pieces(report):
        text = " ".join(text.split())
        if text.strip(" .:_-"):
            sections[name] = f"{sections[name]} {text}" if name in sections else text
    return sections


def _section_pieces(report: str) -> list[tuple[str, str]]:
    """Name and raw text of each section in order, the first one `"other"`; empty without any header."""
    headers = []
    for match in _HEADER.finditer(report):
        word = next(group for group in match.groups() if group)
        # The full stop that made the next header a sentence start belongs to the section before.
        start = match.start() + (match.group()[0] in ".!?")
        headers.append((start, match.end(), _SECTION_OF[word.lower()]))
    headers = _with_views(report, headers)
    names = ["other", *(name for _, _, name in headers)]
    starts = [0, *(end for _, end, _ in headers)]
    ends = [*(start for start, _, _ in headers), len(report)]
    pieces = [(n, report[a:b]) for n, a, b in zip(names, starts, ends, strict=True)]
    return pieces if headers else []


def _with_views(report: str, headers: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Adds headers that name views or organs, where they open a section."""
    explicit = any(name == "findings" for _, _, name in headers)
    found = []
    for match in _VIEW_HEADER.finditer(report):
        before = [name for start, _, name in [*headers, *found] if start <= match.start()]
        taken = any(start < match.end() and match.start() < end for start, end, _ in headers)
        inside = any(name in ("findings", "impression") for name in before)
        if not (taken or inside):
            name = "examination" if explicit else "findings"
            found.append((match.start(), match.end(), name))
    return sorted([*headers, *found])


def descriptive_text(report: str) -> str:
    """The parts of a report that describe the image, as paragraphs with their line breaks.

    Without headers that is the whole report. Where the headers name neither findings nor an impression, the
    paragraphs after the first one of the last section count, as in the section rules published with
    MIMIC-CXR ("COMPARISON: None.", an empty line, and the report).

    Args:
        report: text with or without headers.
    """
    pieces = _section_pieces(report)
    if not pieces:
        return report
    kept = [text.strip() for name, text in pieces if name in DESCRIPTIVE_SECTIONS]
    if not any(name in DESCRIPTIVE_SECTIONS[:-1] for name, _ in pieces):
        kept += [paragraph.strip() for paragraph in _EMPTY_LINE.split(pieces[-1][1])[1:]]
    return "\n\n".join(text for text in kept if text)


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
