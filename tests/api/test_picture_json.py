"""Answers in JSON with large pictures, which are sent piece by piece."""

import base64
import json
import random

import httpx
import pytest
from starlette.types import Message, Scope

from app.api.picture_json import PictureResponse, as_json

FILES = [random.Random(size).randbytes(size) for size in (0, 1, 2, 3, 1 << 20, (1 << 20) + 1)]


async def sent_by(response: PictureResponse) -> list[Message]:
    messages: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing is to be received")

    async def send(message: Message) -> None:
        messages.append(message)

    scope: Scope = {"type": "http"}
    await response(scope, receive, send)
    return messages


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_every_file_is_whole_and_in_its_place_and_no_piece_is_large(prefix: str) -> None:
    response = PictureResponse(
        lambda encoded: as_json({"images": [prefix + encoded(number) for number in range(len(FILES))], "é": "\\n"}),
        FILES,
        headers={"X-Seed": "7"},
    )
    start, *parts = await sent_by(response)
    body = b"".join(part["body"] for part in parts)
    value = json.loads(body)
    assert [base64.b64decode(image.removeprefix(prefix)) for image in value["images"]] == FILES
    assert value["é"] == "\\n"
    headers = dict(start["headers"])
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-seed"] == b"7"
    assert max(len(part["body"]) for part in parts) <= 1 << 18
    assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]


async def test_a_prompt_that_looks_like_a_stand_in_stays_as_it_is(client: httpx.AsyncClient) -> None:
    prompt = "0123456789abcdef0123456789abcdef-0-"
    made = await client.post("/txt2img", json={"prompt": prompt}, headers={"Accept": "application/json"})
    assert made.json()["parameters"]["prompt"] == prompt
