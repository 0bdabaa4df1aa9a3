"""Where a long prompt is divided. Tokens are numbers here, and the comma is -1."""

from collections.abc import Sequence

import pytest

from app.pipelines.prompt_options import PromptMode
from app.pipelines.prompt_windows import Token, Windows, windows_of

COMMA = -1


def split(*sections: Sequence[int], mode: PromptMode = "chunked") -> Windows[int]:
    return windows_of([[Token(number) for number in section] for section in sections], mode, comma=COMMA)


def lengths(*sections: Sequence[int]) -> list[int]:
    return [len(window) for window in split(*sections).used]


def with_commas(tokens: int, *places: int) -> list[int]:
    return [COMMA if place in places else place for place in range(tokens)]


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])]
)
def test_a_window_has_75_tokens(tokens: int, expected: list[int]) -> None:
    assert lengths(range(tokens)) == expected


@pytest.mark.parametrize(
    ("comma", "first"),
    [(54, 75), (55, 56), (70, 71), (74, 75), (75, 75)],
    ids=["21st last", "20th last", "near the end", "last", "the next one"],
)
def test_a_full_window_ends_after_a_comma_among_its_last_20_tokens(comma: int, first: int) -> None:
    assert lengths(with_commas(80, comma)) == [first, 80 - first]


def test_of_several_commas_the_last_one_counts_and_a_prompt_that_fits_is_not_divided() -> None:
    assert lengths(with_commas(80, 60, 66, 76)) == [67, 13]
    assert lengths(with_commas(75, 60)) == [75]


def test_tokens_keep_their_order_and_their_weights() -> None:
    tokens = [Token(number, 1 + number / 100) for number in with_commas(200, 60, 100, 130, 170)]
    windows = windows_of([tokens], "chunked", comma=COMMA)
    assert [token for window in windows.used for token in window] == tokens
    assert [len(window) for window in windows.used] == [61, 70, 69]


def test_each_section_begins_a_window_and_an_empty_one_is_an_empty_window_but_at_the_end() -> None:
    assert lengths(range(3), range(80)) == [3, 75, 5]
    assert lengths(range(75), range(1)) == [75, 1]
    assert lengths([], range(2)) == [0, 2]
    assert lengths(range(2), [], range(2)) == [2, 0, 2]
    assert lengths(range(2), []) == [2]
    assert lengths([], []) == [0]


def test_there_are_8_windows_at_most_and_the_rest_is_counted() -> None:
    full, over = split(range(600)), split(range(700))
    assert (len(full.used), full.tokens, full.dropped_tokens) == (8, 616, 0)
    assert (len(over.used), over.tokens, over.dropped_tokens) == (8, 616, 100)
    assert split(*[range(1)] * 10).dropped_tokens == 2


def test_cut_keeps_75_tokens_of_the_first_section_whatever_its_commas() -> None:
    cut = split(with_commas(80, 60), mode="cut")
    assert (cut.tokens, cut.dropped_tokens) == (77, 5)
    sections = split(range(4), range(5), mode="cut")
    assert (sections.tokens, sections.dropped_tokens) == (6, 5)
