import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.answers import choose_media_type
from app.errors import NotAcceptableError


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "image/png"),
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/png", "image/png"),
        ("image/webp", "image/webp"),
        ("IMAGE/JPEG", "image/jpeg"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json, image/png", "image/png"),
        ("image/png;q=0.5, image/webp;q=0.7", "image/webp"),
        ("image/png;q=0, */*", "image/webp"),
        ("text/html, image/avif, image/webp, */*;q=0.8", "image/webp"),
        ("application/json, */*;q=0.1", "application/json"),
    ],
)
def test_one_picture_is_a_png_unless_accept_prefers_something_else(accept: str | None, expected: str) -> None:
    assert choose_media_type(accept, num_images=1) == expected


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "application/*", "image/png, application/json;q=0.1"]
)
def test_several_pictures_are_json(accept: str | None) -> None:
    assert choose_media_type(accept, num_images=2) == "application/json"


@pytest.mark.parametrize(
    ("accept", "num_images"),
    [("text/html", 1), ("image/gif", 1), ("image/png", 2), ("image/*", 2), ("*/*;q=0", 1), (";", 1)],
)
def test_an_impossible_accept_is_an_error_that_lists_what_there_is(accept: str, num_images: int) -> None:
    with pytest.raises(NotAcceptableError, match=r"Accept must allow one of: .*application/json"):
        choose_media_type(accept, num_images=num_images)


@given(st.text(max_size=60), st.integers(1, 4))
def test_no_accept_header_breaks_it(accept: str, num_images: int) -> None:
    with contextlib.suppress(NotAcceptableError):
        assert "/" in choose_media_type(accept, num_images=num_images)
