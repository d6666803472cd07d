"""Without these, sentences would break inside numbers, sections would swallow each other, and equal
reports would count as different ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medvlp_jax.data.reports import (
    SECTION_HEADERS,
    clean_text,
    descriptive_text,
    normalise_for_id,
    split_sections,
    split_sentences,
    stable_id,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart is normal. No effusion.", ["Heart is normal.", "No effusion."]),
        ("A nodule of 2.5 cm is seen. Stable.", ["A nodule of 2.5 cm is seen.", "Stable."]),
        ("It measures 2. 5 cm.", ["It measures 2. 5 cm."]),
        ("Seen by Dr. A. Smith. Agreed.", ["Seen by Dr. A. Smith.", "Agreed."]),
        ("Lines, e.g. a PICC, are seen.", ["Lines, e.g. a PICC, are seen."]),
        ("1. Normal heart. 2. No effusion.", ["Normal heart.", "No effusion."]),
        ("1. normal heart\n2. no effusion\n", ["normal heart", "no effusion"]),
        ("1) Normal. 2) 8 mm nodule.", ["Normal.", "8 mm nodule."]),
        ("- one\n- two\n\nthree\nfour.", ["one", "two", "three four."]),
        ("normal heart. no effusion", ["normal heart.", "no effusion"]),
        ("Is it pneumonia? Unlikely!", ["Is it pneumonia?", "Unlikely!"]),
        ('He said "stable." Nothing else.', ['He said "stable."', "Nothing else."]),
        ("Compared to 12. 3. 2019, no change.", ["Compared to 12. 3. 2019, no change."]),
        ("", []),
        (" 12. ... ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_no_word_of_a_real_report_is_lost(data_dir) -> None:
    lines = (data_dir / "openi_reports/reports.jsonl").read_text("utf-8").splitlines()
    counts = []
    for line in lines:
        text = clean_text(json.loads(line)["findings"])
        sentences = split_sentences(text)
        letters = [c for c in text if c.isalpha()]
        assert [c for s in sentences for c in s if c.isalpha()] == letters
        counts.append(len(sentences))
        assert all(len(s) < 700 for s in sentences)
    assert 4 < sum(counts) / len(counts) < 8


def test_sections() -> None:
    report = (
        "EXAMINATION: CHEST (PA AND LAT)\n\nINDICATION:  ___ year old with cough.\n"
        "COMPARISON:  None.\n\nFINDINGS: \n\nThe lungs are clear. No new findings: stable.\n\n"
        "IMPRESSION: 1. Normal.\n 2. Stable lines."
    )
    assert split_sections(report) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old with cough.",
        "comparison": "None.",
        "findings": "The lungs are clear. No new findings: stable.",
        "impression": "1. Normal. 2. Stable lines.",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Just a caption.", {}),
        ("Lungs clear. IMPRESSION: Normal.", {"other": "Lungs clear.", "impression": "Normal."}),
        ("Findings: a. Impression: b.", {"findings": "a.", "impression": "b."}),
        ("CONCLUSION: x\nOpinion: y", {"impression": "x y"}),
        ("FINDINGS AND IMPRESSION: both", {"findings": "both"}),
        ("FINDINGS:\nIMPRESSION: Normal.", {"impression": "Normal."}),
        ("history: of cancer\nfindings: none", {"indication": "of cancer", "findings": "none"}),
    ],
)
def test_section_headers(text: str, expected: dict[str, str]) -> None:
    assert split_sections(text) == expected


@pytest.mark.parametrize("name", SECTION_HEADERS)
def test_all_spellings_open_their_section(name: str) -> None:
    for word in SECTION_HEADERS[name]:
        for form in (word.upper(), word.title(), word.capitalize(), word):
            for header in (f"\n {form}:  ", f"\n\n{form} :\n\n "):
                report = (
                    f"                                 FINAL REPORT\n CT OF IT{header}Body of it."
                )
                found = split_sections(report)
                assert found.pop("other", "CT OF IT") in ("CT OF IT", "FINAL REPORT CT OF IT")
                examination = found.pop("examination", "CT OF IT")
                assert examination.replace("CT OF IT", "").strip() in ("", "Body of it.")
                if name != "examination":
                    assert found == {name: "Body of it."}
        alone = split_sections(f"INDICATION: cough.\n{word.upper()}\nBody of it.")
        assert alone[name].endswith("Body of it.")


VIEWS = (
    "CHEST, TWO VIEWS", "PORTABLE CHEST", "PA AND LATERAL VIEWS OF THE CHEST", "AP UPRIGHT CHEST",
    "SINGLE FRONTAL VIEW", "CHEST (PORTABLE AP)", "LUNGS",
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_views_stand_for_findings_only_where_no_header_does(view: str) -> None:
    assert split_sections(f"COMPARISON: None.\n\n {view}:  Clear.\n\n IMPRESSION: Normal.") == {
        "comparison": "None.",
        "findings": "Clear.",
        "impression": "Normal.",
    }
    assert split_sections(f"{view}: Clear.") == {"findings": "Clear."}
    title = split_sections(f"{view}:\n\n INDICATION: Cough.\n FINDINGS: Clear.\n {view}: same.")
    assert title == {"indication": "Cough.", "findings": f"Clear. {view}: same."}
    assert "findings" not in split_sections(f"IMPRESSION: Normal.\n {view}: same.")


def test_lists_of_organs_are_one_section() -> None:
    report = "COMPARISON: None.\nLUNGS: Clear.\nHEART: Normal.\nBONES: Intact.\nIMPRESSION: Normal."
    found = split_sections(report)
    assert found["findings"] == "Clear. HEART: Normal. BONES: Intact."
    inside = split_sections(report.replace("LUNGS:", "FINDINGS:\nLUNGS:"))
    assert inside["findings"] == "LUNGS: Clear. HEART: Normal. BONES: Intact."


def test_headers_within_a_line_are_in_capitals() -> None:
    report = "EXAM: CHEST 2V COMPARISON: CT HISTORY: cough FINDINGS: Clear, Comparison: same."
    assert split_sections(report) == {
        "examination": "CHEST 2V",
        "comparison": "CT",
        "indication": "cough",
        "findings": "Clear, Comparison: same.",
    }


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No header. Clear.", "No header. Clear."),
        ("INDICATION: Cough.\nFINDINGS: 1. a\n2. b\nIMPRESSION: c", "1. a\n2. b\n\nc"),
        (
            "INDICATION: Cough.\n\n The lungs are clear.\n\nNormal.",
            "The lungs are clear.\n\nNormal.",
        ),
        ("WET READ: Clear.\nRECOMMENDATION(S): CT.\nADDENDUM: Told.", "Clear.\n\nTold."),
        ("Clear. INDICATION: Cough.", "Clear."),
        ("INDICATION: Cough.", ""),
        ("", ""),
    ],
)
def test_descriptive_text(report: str, expected: str) -> None:
    assert descriptive_text(report) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Inferior XXXX XXXX XXXX.", "Inferior."),
        ("XXXX-year-old with XXXX", "year-old with"),
        ("___ F with [**2101-3-4**] pain", "F with pain"),
        ("chest x-XXXX. Max XXL.", "chest x. Max XXL."),
        ("a  b\t c \n d\r\ne", "a b c\nd\ne"),
        ("&lt;5 mm &amp; more", "<5 mm & more"),
        ("\u201cquoted\u201d \u2018it\u2019s\u2019\u00a0ok\u200b", "\"quoted\" 'it's' ok"),
        ("Stable, XXXX, XXXX, end..", "Stable, end."),
        ("Ellipsis... stays", "Ellipsis... stays"),
        ("4 µm² in Müller", "4 µm² in Müller"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean_text(text) == expected
    assert clean_text(expected) == expected


def test_masks_can_become_a_token() -> None:
    assert clean_text("Inferior XXXX XXXX lobe", mask="[DEID]") == "Inferior [DEID] lobe"


def test_ids_of_texts() -> None:
    same = ["No effusion.", "no  effusion", "NO EFFUSION!", "XXXX No effusion XXXX"]
    assert {normalise_for_id(t) for t in same} == {"no effusion"}
    assert normalise_for_id("no 2 cm effusion") != normalise_for_id("no 3 cm effusion")
    assert normalise_for_id("Épanchement ﬁne") == normalise_for_id("épanchement fine")


def test_hash_is_the_same_in_every_process_and_fits_int32(root) -> None:
    ids = [stable_id(f"patient {i}") for i in range(2000)]
    assert min(ids) >= 0
    assert max(ids) < 2**31
    assert len(set(ids)) == 2000
    code = "from medvlp_jax.data.reports import stable_id; print(stable_id('patient 7'))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert int(other.stdout) == ids[7]
    assert stable_id("patient 7") == 809_465_379
