"""The emphasis syntax of Stable Diffusion WebUI: what is a weight, and what is text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pipelines.prompt_syntax import MAX_WEIGHT, EmphasisError, sections_of


def read(prompt: str) -> list[list[tuple[str, float]]]:
    """The texts and rounded weights of each section."""
    return [[(part.text, round(part.weight, 6)) for part in section] for section in sections_of(prompt, "webui")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a red fox", [("a red fox", 1)]),
        ("a (red) fox", [("a ", 1), ("red", 1.1), (" fox", 1)]),
        ("a [red] fox", [("a ", 1), ("red", round(1 / 1.1, 6)), (" fox", 1)]),
        ("a (red:1.3) fox", [("a ", 1), ("red", 1.3), (" fox", 1)]),
        ("a ( red : 0.5 ) fox", [("a ", 1), (" red ", 0.5), (" fox", 1)]),
        ("(red:.5)(fox:2.)(owl:-1)(elk:+3)", [("red", 0.5), ("fox", 2), ("owl", -1), ("elk", 3)]),
        ("(a (b:2) [c])", [("a ", 1.1), ("b", 2.2), (" ", 1.1), ("c", 1)]),
        ("((a):2) b", [("a", 2.2), (" b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", round(1 / 1.1, 6))]),
    ],
)
def test_brackets_change_the_weight_of_what_is_in_them_and_multiply_when_nested(
    prompt: str, expected: list[tuple[str, float]]
) -> None:
    assert read(prompt) == [expected]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (r"a \(red\) \[fox\] \\ \x", [(r"a (red) [fox] \ x", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("12:30) red: fox] :", [("12:30) red: fox] :", 1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:hot)", [("red:hot", 1.1)]),
        ("(red:1e9)", [("red:1e9", 1.1)]),
        ("(red:\u0661)", [("red:\u0661", 1.1)]),
        ("[red:1.5]", [("red:1.5", round(1 / 1.1, 6))]),
        ("red:1.3)", [("red:1.3)", 1)]),
    ],
)
def test_escaped_and_lonely_brackets_and_weights_that_are_no_numbers_are_text(
    prompt: str, expected: list[tuple[str, float]]
) -> None:
    assert read(prompt) == [expected]


def test_an_open_bracket_lasts_to_the_end() -> None:
    assert read("a (red fox") == [[("a ", 1), ("red fox", 1.1)]]
    assert read("a [(red:2) fox") == [[("a ", 1), ("red", round(2 / 1.1, 6)), (" fox", round(1 / 1.1, 6))]]


def test_break_in_capitals_and_as_a_word_begins_a_section_also_in_brackets() -> None:
    assert read("a BREAK b") == [[("a ", 1)], [(" b", 1)]]
    assert read("(a BREAK b) c") == [[("a ", 1.1)], [(" b", 1.1), (" c", 1)]]
    assert read("BREAK") == [[("", 1)], [("", 1)]]
    assert len(read("break BREAKFAST outBREAK")) == 1


def test_plain_text_has_no_syntax() -> None:
    prompt = r"a (red:1.3) \(fox\) BREAK [b]"
    assert [[(part.text, part.weight) for part in section] for section in sections_of(prompt, "plain")] == [
        [(prompt, 1.0)]
    ]


@pytest.mark.parametrize("prompt", ["(a:10.1)", "(a:-11)", "(" * 25 + "a", "(" * 1999 + "a", f"((a:{'9' * 1900}):0)"])
def test_a_weight_beyond_the_bound_is_an_error(prompt: str) -> None:
    with pytest.raises(EmphasisError, match="from -10 to 10"):
        sections_of(prompt, "webui")


@pytest.mark.parametrize("prompt", ["(a:10)", "(" * 24 + "a", "(" * 1000 + "[" * 1000 + "a", "(" * 2000, "(:99)"])
def test_weights_within_the_bound_and_of_no_text_are_none(prompt: str) -> None:
    sections_of(prompt, "webui")


@given(st.text(st.sampled_from("ab(){}[]:\\ .1-BREAK,"), max_size=60))
def test_whatever_is_sent_has_bounded_weights_or_is_that_error(prompt: str) -> None:
    try:
        sections = sections_of(prompt, "webui")
    except EmphasisError:
        return
    assert sections
    assert all(abs(part.weight) <= MAX_WEIGHT for section in sections for part in section if part.text.strip())


@given(st.text(st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"]), max_size=60))
def test_text_without_brackets_and_backslashes_means_the_same_in_both(prompt: str) -> None:
    if "BREAK" not in prompt:
        (section,) = sections_of(prompt, "webui")
        assert [(part.text, part.weight) for part in section] == ([(prompt, 1.0)] if prompt else [])
