# SPDX-License-Identifier: Apache-2.0
"""Every citation of the semantics and of an edge case leads to a heading of the page that has them.

That the page's own blocks run is in test_readme.py, with those of all pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# The root is where the page is: the tests may stand in folders.
ROOT = next(at for at in Path(__file__).resolve().parents if (at / "pyproject.toml").is_file())
PAGE = ROOT / "prune_engine" / "SEMANTICS.md"
FOLDERS = ("prune_engine", "csrc", "tests", "bench")
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".md"}

# A citation may go over the end of a comment's line: "SEMANTICS 3.2 to\n# 3.4", "edge\n// case 3".
GAP = r"[\s/#*]+"
NUMBERS = rf"(\d+(?:\.\d+)?(?:(?:,|{GAP}and|{GAP}to){GAP}\d+(?:\.\d+)?)*)"
SECTION = re.compile(rf"\bSEMANTICS{GAP}{NUMBERS}")
CASE = re.compile(rf"\bedge{GAP}cases?{GAP}{NUMBERS}", re.IGNORECASE)
NAMED = re.compile(r"\bdef test\w*?_edge_cases?_((?:\d\d|and)(?:_(?:\d\d|and)(?![^\W_]))*)_")
HEADING = re.compile(r"^#+ (?:(Edge case) )?(\d+(?:\.\d+)?)\b", re.MULTILINE)


class Citation(NamedTuple):
    """A place that sends its reader to a number of the page."""

    line: int
    kind: str
    number: str


def headings(page: str) -> set[tuple[str, str]]:
    """Return (kind, number) of the page's headings; one number, one heading."""
    found = [("edge case" if case else "section", number) for case, number in HEADING.findall(page)]
    assert len(set(found)) == len(found), "two headings have one number"
    return set(found)


def spread(words: str) -> list[str]:
    """Return the numbers of "3.1, 3.2", "1 and 3" or "3.2 to 3.4", those between included."""
    numbers: list[str] = []
    joint = ""
    for word in re.findall(r"to|\d+(?:\.\d+)?", words):
        if word != "to" and joint == "to":
            *stem, first = numbers[-1].split(".")
            between = range(int(first) + 1, int(word.split(".")[-1]))
            numbers += [".".join([*stem, str(middle)]) for middle in between]
        if word != "to":
            numbers.append(word)
        joint = word
    return numbers


def citations(text: str) -> Iterator[Citation]:
    """Yield what a text cites; the name of a test cites its edge cases."""
    for kind, pattern in (("section", SECTION), ("edge case", CASE), ("edge case", NAMED)):
        for match in pattern.finditer(text):
            words = match[1] if pattern is not NAMED else match[1].replace("_", ", ")
            for number in spread(words):
                bare = number if "." in number else str(int(number))
                yield Citation(text.count("\n", 0, match.start()) + 1, kind, bare)


def files(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in found if path.suffix in SUFFIXES and path != PAGE)


def dangling(name: str, text: str, known: set[tuple[str, str]]) -> list[str]:
    """Return the citations of a text that no heading answers."""
    return [
        f"{name}:{line} cites {kind} {number}"
        for line, kind, number in citations(text)
        if (kind, number) not in known
    ]


def cited(*folders: str) -> set[tuple[str, str]]:
    texts = (path.read_text(encoding="utf-8") for path in files(*folders))
    return {(each.kind, each.number) for text in texts for each in citations(text)}


def test_every_citation_resolves() -> None:
    known = headings(PAGE.read_text(encoding="utf-8"))
    lost = [
        line
        for path in files(*FOLDERS)
        for line in dangling(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"), known
        )
    ]
    assert lost == []


def test_the_citations_are_found() -> None:
    for folder in ("prune_engine", "csrc", "tests"):
        assert {kind for kind, _ in cited(folder)} == {"section", "edge case"}, folder


def test_the_page_cites_only_itself() -> None:
    page = PAGE.read_text(encoding="utf-8")
    prose = re.sub(r"\bsections?(?= \d)|\((?=\d\.\d+\))", "SEMANTICS ", page)
    assert ("section", "3.10") in {(each.kind, each.number) for each in citations(prose)}
    assert dangling("page", prose, headings(page)) == []


def test_every_edge_case_has_a_test_and_code_that_name_it() -> None:
    cases = {each for each in headings(PAGE.read_text(encoding="utf-8")) if each[0] == "edge case"}
    assert len(cases) == 12
    assert cases - cited("tests") == set()
    assert cases - cited("prune_engine", "csrc") == set()


# Put together here, so that this file cites nothing that there is not.
@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("as in SEMANTICS " + "3.19)", ["section 3.19"]),
        ("# SEMANTICS " + "3.1, 3.99 say so", ["section 3.99"]),
        ("(SEMANTICS " + "3.18 to\n    3.19). Equal", ["section 3.18", "section 3.19"]),
        ("// the words of SEMANTICS " + "1 and\n// 8.", ["section 8"]),
        ("if size == 0:  # edge case " + "13", ["case 13"]),
        ("// Edge\n// case " + "13, nothing seen", ["case 13"]),
        ("def test_edge_cases_" + "03_13_a_wrong_thing(): ...", ["case 13"]),
        ("def test_edge_case_" + "07_and_14_a_wrong_thing(): ...", ["case 14"]),
        ("SEMANTICS " + "3.2; after 2022. Edge case " + "12. 40 bits", []),
        ("def test_observe_edge_case_" + "03_2_indices(): ...", []),
    ],
)
def test_control_a_number_without_a_heading_is_caught(text: str, lost: list[str]) -> None:
    known = headings(PAGE.read_text(encoding="utf-8"))
    found = [" ".join(line.split()[-2:]) for line in dangling("x", text, known)]
    assert found == lost
    assert list(citations(text)) != []


def test_control_a_heading_that_is_gone_or_there_twice_is_seen() -> None:
    page = PAGE.read_text(encoding="utf-8")
    without = page.replace("### 3.3 ", "### ")
    assert without != page
    assert dangling("x", "SEMANTICS " + "3.3", headings(without)) != []
    with pytest.raises(AssertionError, match="one number"):
        headings(page + "### Edge case 4: again\n")
