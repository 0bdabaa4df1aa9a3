"""JSON with a picture of megabytes in it, which is never copied, searched or decoded as a whole."""

import base64
import io
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.large_body import PIECE_BYTES, LongText, parse_json_around
from app.errors import InvalidImageError, MalformedBodyError
from app.inference.memory import reserve

JSON = {"Content-Type": "application/json"}
LARGE = 8 << 20


def noise_png(side: int = 512) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    return file.getvalue()


def held(body: bytes) -> memoryview:
    """The body as the route holds it."""
    memory = reserve(len(body))
    memory[:] = body
    return memoryview(memory)


def text_of(body: bytes) -> LongText:
    value, stand_in, text = parse_json_around(held(body))
    assert text is not None
    assert value["inputs"] == stand_in
    return text


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post("/", content=body, headers=JSON)


@pytest.fixture(scope="module")
def picture() -> bytes:
    return noise_png()


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_text_is_searched_and_decoded_in_pieces() -> None:
    file = np.random.default_rng(0).bytes(LARGE // 4 * 3)
    body = held(b'{"inputs": "' + base64.b64encode(file) + b'"}')
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    _, _, text = parse_json_around(body)
    assert text is not None
    decoded = text.decode_base64()
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < 8 * PIECE_BYTES < LARGE // 2
    assert decoded == file


async def test_a_large_body_is_parsed_and_decoded_beside_the_event_loop(
    client: httpx.AsyncClient, picture: bytes
) -> None:
    called: dict[str, set[int]] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called.setdefault(frame.f_code.co_name, set()).add(threading.get_ident())

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        answer = await post(client, b'{"inputs": "' + base64.b64encode(picture) + b'"}')
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert answer.status_code == 200
    loop_thread = threading.get_ident()
    for name in ("parse_json_around", "parse_json", "decode_base64", "decode_image"):
        assert called[name]
        assert loop_thread not in called[name]
    assert loop_thread in called["read_body"]


@pytest.mark.parametrize("shift", range(4))
def test_escapes_are_read_wherever_pieces_end(shift: int) -> None:
    file = b"\xff" * (PIECE_BYTES + 3 * shift)  # in base64 slashes alone
    escaped = base64.b64encode(file).replace(b"/", b"\\/")
    text = text_of(b'{"inputs": "\\n%b%b\\n"}' % (b" " * shift, escaped))
    assert text.begin.lstrip().startswith("////")
    assert text.decode_base64() == file


async def test_a_large_picture_with_its_slashes_escaped_is_the_same_picture(
    client: httpx.AsyncClient, picture: bytes
) -> None:
    encoded = base64.b64encode(picture)
    forms = (encoded, encoded.replace(b"/", b"\\/"), b" \\n" + encoded + b"\\r\\n", b"data:image/png;base64," + encoded)
    answers = [await post(client, b'{"inputs": "%b", "parameters": {"seed": 1}}' % form) for form in forms]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize("file_bytes", [0, 1, 2])
def test_a_file_may_have_any_length(file_bytes: int) -> None:
    file = bytes(PIECE_BYTES + file_bytes)
    assert text_of(b'{"inputs": "%b"}' % base64.b64encode(file)).decode_base64() == file


@pytest.mark.parametrize("wrong", [b"*", b"A A", b"=AAA", b"\\n\\nA"], ids=["no digit", "blank", "early end", "lines"])
def test_a_text_that_is_not_base64_far_behind_its_begin_is_refused(wrong: bytes) -> None:
    text = text_of(b'{"inputs": "%b%b%b"}' % (b"A" * PIECE_BYTES, wrong, b"A" * 4096))
    with pytest.raises(InvalidImageError, match="not base64"):
        text.decode_base64()


def test_a_text_that_is_no_json_string_far_behind_its_begin_is_refused_with_its_place() -> None:
    for wrong, reason in ((b"\n", "Invalid control character"), (b"\\x", "Invalid \\\\escape")):
        text = text_of(b'{"inputs": "%b%b%b"}' % (b"A" * PIECE_BYTES, wrong, b"A" * 4096))
        with pytest.raises(MalformedBodyError, match=f"{reason}.* at character {12 + PIECE_BYTES}"):
            text.decode_base64()


LONG = b"A" * 200_000


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"inputs": "%b' % LONG, 400, "Unterminated string starting at character 11."),
        (b'{"inputs": "%b"' % LONG, 400, "Expecting ',' delimiter at character 200013."),
        (b'{"\xc3\xa4": NaN, "inputs": "%b"}' % LONG, 400, "NaN is no value, at character 6."),
        (b'{"inputs": "%b", "x": NaN}' % LONG, 400, "NaN is no value, at character 200020."),
        (b'{"inputs": "%b", "inputs": "a"}' % LONG, 422, "inputs is sent twice."),
        (b'{"inputs": "%b", "parameters": {"seed": 1, "seed": 1}}' % LONG, 422, "parameters.seed is sent twice."),
        (b'{"inputs": "%b", "parameters": {"seed": -1}}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "/9j/%b", "parameters": {"seed": -1}}' % LONG, 422, "greater than or equal to 0"),
        (b'{"inputs": "/9j/%b"}' % LONG, 422, "truncated or damaged"),
        (b'{"inputs": "%b"}' % LONG, 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "%b"}' % (b"\\n" * 100_000), 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "/9j/", "parameters": {"prompt": "%b"}}' % LONG, 422, "prompt: String should have at most 2000"),
        (b'{"inputs": "a", "parameters": {"seed": "%b"}}' % LONG, 422, "seed: Input should be a valid integer"),
        (b'{"inputs": "a", "%b": 1}' % LONG, 422, "A" * 100 + ": Extra inputs are not permitted"),
        (b'{"inputs": "a"%b}' % (b" " * 200_000), 413, "beside the picture"),
        (b'{"inputs": %b}' % (b"1" * 200_000), 413, "beside the picture"),
        (b" " * 200_000, 413, "beside the picture"),
        (b"1" * 200_000, 413, "beside the picture"),
        (b'["%b"]' % LONG, 422, "must be a JSON object"),
        (b'{"inputs": "%b\\""}' % LONG, 422, "not base64"),
        (b'{"inputs": "\\"%b"}' % LONG, 422, "2000 characters"),
    ],
)
async def test_json_with_a_long_text_is_refused_as_it_would_be_with_a_short_one(
    client: httpx.AsyncClient, body: bytes, status: int, reason: str
) -> None:
    refused = await post(client, body)
    assert refused.status_code == status
    assert reason in refused.json()["detail"]
