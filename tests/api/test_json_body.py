"""JSON that cannot be parsed, or says a thing twice, on every route that takes JSON."""

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.json_body import parse_json
from app.errors import InvalidRequestError, MalformedBodyError
from tests.api.test_errors import assert_is_problem

JSON = {"Content-Type": "application/json"}

ROUTES = [
    pytest.param("/txt2img", "prompt", id="txt2img"),
    pytest.param("/v1/images/generations", "prompt", id="OpenAI"),
    pytest.param("/", "inputs", id="Hugging Face"),
]


async def post(client: httpx.AsyncClient, path: str, body: bytes) -> httpx.Response:
    return await client.post(path, content=body, headers=JSON)


# From Python 3.14 on, the stack bounds the parser's depth, and this depth fits.
DEEP = "nested too deeply" if sys.version_info < (3, 14) else "The body is not JSON: Expecting value at character"


@pytest.mark.parametrize(("path", "field"), ROUTES)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"FIELD": ', "The body is not JSON: Expecting value at character {0}."),
        (b'{"FIELD": "a cat', "The body is not JSON: Unterminated string starting at character {0}."),
        (b'{"FIELD": "a"} x', "The body is not JSON: Extra data at character {5}."),
        (b'{"FIELD": NaN}', "The body is not JSON: NaN is not a JSON value."),
        (b'{"FIELD": -Infinity}', "The body is not JSON: -Infinity is not a JSON value."),
        (b'{"FIELD": "\xff"}', "The body is not JSON: not UTF-8 at byte {1}."),
        (b'{"FIELD": ' + b"9" * 5000 + b"}", "The body's JSON has an integer of more than 4300 digits."),
        (b'{"FIELD": ' + b"9" * 4301 + b"}", "The body's JSON has an integer of more than 4300 digits."),
        (b'{"FIELD": -' + b"9" * 4301 + b"}", "The body's JSON has an integer of more than 4300 digits."),
        (b"[" * 60_000, DEEP),
        (b'{"FIELD": "a"}'.decode().encode("utf-16-be"), "The body is not JSON"),
        (b"what?", "The body is not JSON: Expecting value at character 0."),
    ],
    ids=[
        "cut off",
        "cut string",
        "more behind",
        "NaN",
        "Infinity",
        "no UTF-8",
        "digits",
        "a digit",
        "below zero",
        "nesting",
        "UTF-16",
        "words",
    ],
)
async def test_what_is_no_json_is_a_400_that_says_where(
    client: httpx.AsyncClient, path: str, field: str, body: bytes, reason: str
) -> None:
    value_at = len(f'{{"{field}": ')
    problem = assert_is_problem(await post(client, path, body.replace(b"FIELD", field.encode())), 400, "malformed_body")
    for number in (0, 1, 5):
        reason = reason.replace(f"{{{number}}}", str(value_at + number))
    assert reason in problem["detail"]


@pytest.mark.parametrize(("path", "field"), ROUTES)
async def test_a_name_that_is_sent_twice_is_refused_as_in_a_form(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    body = f'{{"{field}": "a cat", "{field}": "a dog"}}'.encode()
    problem = assert_is_problem(await post(client, path, body), 422, "invalid_request")
    assert (problem["detail"], problem["errors"][0]["param"]) == (f"{field} is sent twice.", field)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"inputs": "a", "parameters": {"seed": 1, "seed": 2}}', "seed"),
        (b'{"inputs": "a", "parameters": {"x": [{}, {"y": 1, "y": 1}]}}', "y"),
        (b'{"parameters": {"a": 1, "a": 2}, "inputs": "a", "inputs": "b"}', "a"),
        (b'{"inputs": "a", "x": {"a": 1, "\\u0061": 2}, "y": {"b": 1, "b": 2}}', "a"),
        (b'{"inputs": "a", "\\ud800": 1, "\\ud800": 1}', "?"),
        (b'{"inputs": "a", "x": {"": 1, "": 1}}', "(an empty name)"),
        (b'{"inputs": "a", "x": ' + b"[" * 60 + b'{"y": 1, "y": 1}' + b"]" * 60 + b"}", "y"),
    ],
)
async def test_the_innermost_and_first_name_that_is_sent_twice_is_named(
    client: httpx.AsyncClient, body: bytes, name: str
) -> None:
    problem = assert_is_problem(await post(client, "/", body), 422, "invalid_request")
    assert (problem["detail"], problem["errors"][0]["param"]) == (f"{name} is sent twice.", name)


@pytest.mark.parametrize(("path", "field"), ROUTES)
async def test_of_a_name_that_is_sent_twice_only_the_begin_is_repeated(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    body = b'{"FIELD": "a", "x": {"LONG": {"LONG": 1, "LONG": 2}}}'
    body = body.replace(b"FIELD", field.encode()).replace(b"LONG", b"y" * 5000)
    problem = assert_is_problem(await post(client, path, body), 422, "invalid_request")
    assert problem["errors"][0]["param"] == "y" * 100


@pytest.mark.parametrize(("path", "field"), ROUTES)
@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"3"])
async def test_json_that_is_no_object_is_a_422(client: httpx.AsyncClient, path: str, field: str, body: bytes) -> None:
    problem = assert_is_problem(await post(client, path, body), 422, "invalid_request")
    assert problem["detail"] == "The body must be a JSON object."
    assert field not in problem["detail"]


@pytest.mark.parametrize(("path", "field"), ROUTES)
async def test_a_body_with_nothing_in_it_is_told_what_is_expected(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    empty = assert_is_problem(await post(client, path, b""), 422, "invalid_request")
    assert empty["detail"] == f"The body is empty; send a JSON object with `{field}`."
    blank = assert_is_problem(await post(client, path, b" \r\n\t"), 400, "malformed_body")
    assert blank["detail"] == f"The body has only white space; send a JSON object with `{field}`."


async def test_a_byte_order_mark_is_overlooked(client: httpx.AsyncClient) -> None:
    for path, field in (("/txt2img", "prompt"), ("/", "inputs")):
        body = b'\xef\xbb\xbf{"%b": "a cat"}' % field.encode()
        assert (await post(client, path, body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, true, null, "x"], "b": {"a": {}}}', {"a": [1, 2.5, True, None, "x"], "b": {"a": {}}}),
        (b'["NaN", "Infinity", {"NaN": -1}]', ["NaN", "Infinity", {"NaN": -1}]),
        (b"9" * 4300, int("9" * 4300)),
        (b'{"a": {"x": 1}, "b": {"x": 1}}', {"a": {"x": 1}, "b": {"x": 1}}),
    ],
)
def test_json_is_read_as_python_reads_it(body: bytes, value: Any) -> None:
    assert parse_json(body) == value


@pytest.mark.parametrize(
    "body", [b'{"NaN": "\\"NaN", "a": NaN}', b'["Infinity", -9.5e3, NaN]', b"[%b.5, NaN]" % (b"1" * 5000)]
)
def test_a_rejected_constant_is_named_among_strings_and_numbers_that_look_like_one(body: bytes) -> None:
    with pytest.raises(MalformedBodyError, match="JSON: NaN is not a JSON value"):
        parse_json(body)


@pytest.fixture
def digits() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("digits")
def test_the_operator_s_own_limit_of_digits_is_told() -> None:
    sys.set_int_max_str_digits(640)
    assert parse_json(b"[-%b]" % (b"9" * 640)) == [-int("9" * 640)]
    with pytest.raises(MalformedBodyError, match="an integer of more than 640 digits"):
        parse_json(b"[%b,%b]" % (b"9" * 640, b"9" * 641))
    sys.set_int_max_str_digits(0)
    assert parse_json(b"9" * 5000) == int("9" * 5000)
    with pytest.raises(MalformedBodyError, match="NaN is not a JSON value"):
        parse_json(b"[%b,NaN]" % (b"9" * 5000))


def test_a_syntax_error_counts_more_than_a_name_that_is_sent_twice() -> None:
    with pytest.raises(MalformedBodyError):
        parse_json(b'{"a": 1, "a": 2')
    with pytest.raises(InvalidRequestError, match="a is sent twice"):
        parse_json(b'{"a": 1, "a": 2}')
