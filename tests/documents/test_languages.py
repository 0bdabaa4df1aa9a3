"""The README in both languages: the same sections, tables, code, links and pictures."""

import re
from collections.abc import Iterator
from itertools import zip_longest

import pytest

from tests.documents.markdown import Cell, Document, Section, document, without_comments

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"


@pytest.fixture(scope="module")
def english() -> Document:
    return document(ENGLISH)


@pytest.fixture(scope="module")
def chinese() -> Document:
    return document(CHINESE)


def test_both_readmes_have_the_same_headings(english: Document, chinese: Document) -> None:
    for theirs, ours in zip_longest(english.sections, chinese.sections):
        assert _level(theirs) == _level(ours), f"{_named(theirs, ENGLISH)} is in the place of {_named(ours, CHINESE)}"


def _level(section: Section | None) -> int | None:
    return None if section is None else section.level


def _named(section: Section | None, name: str) -> str:
    return f"the end of {name}" if section is None else f"{section.where}: {'#' * section.level} {section.title}"


def test_both_readmes_have_the_same_tables(english: Document, chinese: Document) -> None:
    _assert_alike(_tables(english, chinese))


def _tables(english: Document, chinese: Document) -> Iterator[str]:
    for theirs, ours in zip(english.sections, chinese.sections, strict=False):
        if len(theirs.tables) != len(ours.tables):
            yield f"{_pair(theirs, ours)}: {len(theirs.tables)} tables and {len(ours.tables)}"
        for table, translated in zip(theirs.tables, ours.tables, strict=False):
            for number, (row, its) in enumerate(zip_longest(table, translated), start=1):
                if row is None or its is None or [_kept(cell) for cell in row] != [_kept(cell) for cell in its]:
                    yield f"{_pair(theirs, ours)}, row {number}: {_shown(row)} and {_shown(its)}"


def _kept(cell: Cell) -> object:
    """Return the part of a cell that a translation must not change: code, or a text without letters."""
    return cell.code or (cell.text if not re.search(r"[^\W\d]", cell.text) else True)


def _shown(row: list[Cell] | None) -> str:
    return "nothing" if row is None else " | ".join(cell.text for cell in row)


def test_both_readmes_have_the_same_code(english: Document, chinese: Document) -> None:
    _assert_alike(_blocks(english, chinese))


def _blocks(english: Document, chinese: Document) -> Iterator[str]:
    for theirs, ours in zip(english.sections, chinese.sections, strict=False):
        for block, its in zip_longest(theirs.blocks, ours.blocks):
            if block is None or its is None:
                yield f"{_pair(theirs, ours)}: {(block or its).where} has no counterpart"
            elif block.language != its.language:
                yield f"{block.where} is {block.language or 'of no language'}, and {its.where} {its.language}"
            else:
                for line, its_line in zip_longest(*(without_comments(one.text).splitlines() for one in (block, its))):
                    if line != its_line:
                        yield f"{block.where} and {its.where} differ: {line!r} and {its_line!r}"
        if theirs.code != ours.code:
            yield (
                f"{_pair(theirs, ours)}: only in English {sorted(theirs.code - ours.code)}, "
                f"only in Chinese {sorted(ours.code - theirs.code)}"
            )


def test_both_readmes_have_the_same_links_and_pictures(english: Document, chinese: Document) -> None:
    first, its_first = (next(iter(one.links)).target for one in (english, chinese))
    assert (first, its_first) == (CHINESE, ENGLISH), "each README must begin with a link to the other"
    _assert_alike(_links(english, chinese))


def _links(english: Document, chinese: Document) -> Iterator[str]:
    for theirs, ours in zip(english.sections, chinese.sections, strict=False):
        here, there = (sorted(_targets(one, of)) for one, of in ((theirs, english), (ours, chinese)))
        if here != there:
            yield f"{_pair(theirs, ours)}: links to {here} and {there}"


def _targets(section: Section, of: Document) -> Iterator[str]:
    """Yield the targets of the section's links and pictures. A heading of the same document is named by its number."""
    anchors = [one.anchor for one in of.sections]
    for link in (*section.links, *section.images):
        if link.target.removeprefix("#") in anchors:
            yield f"heading {anchors.index(link.target[1:])}"
        elif link.target not in (ENGLISH, CHINESE):
            yield link.target


def _pair(theirs: Section, ours: Section) -> str:
    return f"{theirs.where} ({theirs.title}) and {ours.where} ({ours.title})"


def _assert_alike(differences: Iterator[str]) -> None:
    found = list(differences)
    assert not found, "\n".join(["the READMEs differ:", *found])
