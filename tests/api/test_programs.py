"""The requests of programs that are whole applications, as their sources say that they send them.

`fixtures/` has a file for each program: where its source is, its requests, and what it reads in each answer, or why it
gets none. In `reads`, a path such as `data.*.id` leads to what must be there: a value, or a kind of value in `<>`.
"""

import base64
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from app.main import create_app
from app.pipelines.fake import load_fake
from app.settings import Settings
from tests.conftest import opened, png, serving

Json = dict[str, Any]

PROGRAMS = {file.stem: json.loads(file.read_text("utf-8")) for file in Path(__file__).with_name("fixtures").iterdir()}
REQUESTS = {
    f"{name} {number} {request['method']} {request['path']}": request
    for name, program in sorted(PROGRAMS.items())
    for number, request in enumerate(request for part in program["parts"] for request in part["requests"])
}

MODEL = "stabilityai/sdxl-turbo"
PAGE = "https://lite.koboldai.net"


def transparent_png() -> bytes:
    file = BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 30, 128)).save(file, "PNG")
    return file.getvalue()


PICTURES = {"<PNG>": png, "<RGBA PNG>": transparent_png}
"""What stands for these words in a form."""

FILLED = {
    "<served model>": MODEL,
    "<short name>": "sdxl-turbo",
    "<PNG in base64>": base64.b64encode(png()).decode(),
    "<RGBA PNG in base64>": base64.b64encode(transparent_png()).decode(),
}
"""What stands for these words in a fixture."""


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: Message
    body: bytes


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(
        Settings(model="fake", cors_origins=PAGE), load_pipelines=lambda: replace(load_fake(), model=MODEL)
    )
    with serving(app) as url:
        yield url


def send(url: str, request: Json) -> Answer:
    """Send a request with these headers and no others: clients of HTTP would complete or correct them."""
    headers, body = dict(request.get("headers", {})), None
    if "form" in request:
        # A part is a name, a value and, if it has them, a type and a file's name.
        parts = [(name, _part(value, *more)) for name, value, *more in request["form"]]
        form = httpx.Request("POST", url, files=parts)
        headers["Content-Type"], body = form.headers["content-type"], form.read()
    elif "body" in request:
        fields = filled(request["body"])
        if fields.pop("<all of GET /sdapi/v1/options>", False):
            fields = {**httpx.get(f"{url}/sdapi/v1/options").json(), **fields}
        body = json.dumps(fields).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(request["method"], request["path"], body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def _part(value: str, media_type: str | None = None, file_name: str | None = None) -> tuple[str | None, bytes, str]:
    content = PICTURES[value]() if value in PICTURES else filled(value).encode()
    return (file_name, content, media_type) if media_type else (file_name, content)  # type: ignore[return-value] # httpx takes both


def filled(sent: Any) -> Any:
    """A value with the words of `FILLED` replaced in its texts."""
    if isinstance(sent, dict):
        return {name: filled(value) for name, value in sent.items()}
    if isinstance(sent, list):
        return [filled(value) for value in sent]
    if isinstance(sent, str):
        for word, text in FILLED.items():
            sent = sent.replace(word, text)
    return sent


def found(answer: Any, path: str) -> list[Any]:
    """The values that a path leads to. A text on the way must be JSON, as `info` is."""
    values = [answer]
    for name in path.split("."):
        inside = [json.loads(value) if isinstance(value, str) else value for value in values]
        if name == "*":
            assert all(isinstance(value, list) for value in inside)
            values = [item for value in inside for item in value]
        else:
            values = [value[int(name)] if isinstance(value, list) else value[name] for value in inside]
    return values


def assert_is(value: Any, expected: Any) -> None:
    """Check a value against the one that a fixture names, or its kind."""
    kind = re.fullmatch(r"<(.*?)(?: (\d+)x(\d+))?>", str(expected))
    size = tuple(int(side or 0) for side in kind.groups()[1:]) if kind else ()
    match kind and kind[1]:
        case "text":
            assert isinstance(value, str)
            assert value
        case "integer":
            assert isinstance(value, int)
        case "picture":
            assert opened(base64.b64decode(value, validate=True)).size == size
        case "data URL of a picture":
            head, _, text = value.partition(",")
            assert head == "data:image/png;base64"
            assert opened(base64.b64decode(text, validate=True)).size == size
        case _:
            assert value == filled(expected)


@pytest.mark.parametrize("name", REQUESTS)
def test_programs_get_what_they_read_or_the_reason_why_not(name: str, url: str) -> None:
    request = REQUESTS[name]
    answer = send(url, request)
    outcome, _, feature = request.get("outcome", "").partition(": ")
    if outcome:
        problem = json.loads(answer.body)
        assert (answer.status, problem["code"]) == {
            "refused": (422, "invalid_request"),
            "absent": (404, "not_found"),
        }[outcome]
        assert problem["detail"].startswith(f"{feature}: " if feature else "There is no such route")
    else:
        assert answer.status in (200, 204), answer.body
        assert not request["reads"] or answer.headers.get_content_type() == "application/json"
        for path, expected in request["reads"].items():
            for value in found(json.loads(answer.body), path):
                assert_is(value, expected)
    if "Origin" in request.get("headers", {}):
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_is_named_with_its_source(name: str) -> None:
    program = PROGRAMS[name]
    assert program["program"]
    for part in program["parts"]:
        assert re.match(r"https://github\.com/[^/]+/[^/]+/blob/[^/]+/.", part["source"])
        assert part["requests"]
        for request in part["requests"]:
            assert ("outcome" in request) != ("reads" in request)
