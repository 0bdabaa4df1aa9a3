"""The documents in both languages: the same sections, tables, code, numbers, links and pictures."""

import re
from collections.abc import Iterator
from itertools import zip_longest

import pytest

from tests.documents.markdown import CHINESE, Cell, Document, Section, document, resolved, without_comments


@pytest.fixture(params=CHINESE)
def english(request: pytest.FixtureRequest) -> Document:
    name: str = request.param
    return document(name)


@pytest.fixture
def chinese(english: Document) -> Document:
    return document(CHINESE[english.name])


def test_both_languages_have_the_same_headings(english: Document, chinese: Document) -> None:
    for theirs, ours in zip_longest(english.sections, chinese.sections):
        named = [_named(theirs, english), _named(ours, chinese)]
        assert _level(theirs) == _level(ours), " is in the place of ".join(named)


def _level(section: Section | None) -> int | None:
    return None if section is None else section.level


def _named(section: Section | None, of: Document) -> str:
    return f"the end of {of.name}" if section is None else f"{section.where}: {'#' * section.level} {section.title}"


def test_both_languages_have_the_same_tables(english: Document, chinese: Document) -> None:
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
    """Return the parts of a cell that a translation must not change: its code, its numbers, and a text without letters.

    The order of words differs between the languages, so code may stand in another order.
    """
    return sorted(cell.code), cell.numbers, None if re.search(r"[^\W\d]", cell.text) else cell.text


def _shown(row: list[Cell] | None) -> str:
    return "nothing" if row is None else " | ".join(cell.text for cell in row)


def test_both_languages_have_the_same_code(english: Document, chinese: Document) -> None:
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


def test_both_languages_have_the_same_numbers(english: Document, chinese: Document) -> None:
    _assert_alike(_numbers(english, chinese))


def _numbers(english: Document, chinese: Document) -> Iterator[str]:
    for theirs, ours in zip(english.sections, chinese.sections, strict=False):
        if theirs.numbers != ours.numbers:
            yield (
                f"{_pair(theirs, ours)}: only in English {sorted(theirs.numbers - ours.numbers)}, "
                f"only in Chinese {sorted(ours.numbers - theirs.numbers)}"
            )


def test_both_languages_have_the_same_links_and_pictures(english: Document, chinese: Document) -> None:
    first, its_first = (resolved(next(iter(one.links)).target, one.name)[0] for one in (english, chinese))
    assert (first, its_first) == (chinese.name, english.name), "each document must begin with a link to the other"
    _assert_alike(_links(english, chinese))


def _links(english: Document, chinese: Document) -> Iterator[str]:
    for theirs, ours in zip(english.sections, chinese.sections, strict=False):
        here = sorted((CHINESE.get(name, name), anchor) for name, anchor in _targets(theirs, english, other=chinese))
        there = sorted(_targets(ours, chinese, other=english))
        if here != there:
            yield f"{_pair(theirs, ours)}: links to {here} and {there}"


def _targets(section: Section, of: Document, *, other: Document) -> Iterator[tuple[str, str]]:
    """Yield the targets of the section's links and pictures, except the link to the document in the other language.

    A heading of a translated document is named by its number, because its anchor is translated too.
    """
    translated = {*CHINESE, *CHINESE.values()}
    for link in (*section.links, *section.images):
        name, anchor = resolved(link.target, of.name)
        anchors = [one.anchor for one in document(name).sections] if name in translated else []
        if name != other.name:
            yield name, f"heading {anchors.index(anchor)}" if anchor in anchors else anchor


def _pair(theirs: Section, ours: Section) -> str:
    return f"{theirs.where} ({theirs.title}) and {ours.where} ({ours.title})"


def _assert_alike(differences: Iterator[str]) -> None:
    found = list(differences)
    assert not found, "\n".join(["the documents differ:", *found])
