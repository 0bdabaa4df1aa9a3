"""JSON with a picture of megabytes in it, which is never copied, searched or decoded as a whole."""

import base64
import io
import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.hugging_face.large_body import PIECE_BYTES, LongText, decoded_base64, parse_json_around
from app.api.json_body import parse_json
from app.errors import BodyTooLargeError, InvalidImageError, MalformedBodyError
from app.images.memory import reserve

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
    file = noise_png()
    return file + bytes(2 - len(file) % 3)  # behind the picture's end, so that its base64 is padded


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
    for name in ("parse_json_around", "parse_text", "decode_base64", "decode_image"):
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


async def test_a_large_picture_is_the_same_picture_however_it_is_escaped(
    client: httpx.AsyncClient, picture: bytes
) -> None:
    encoded = base64.b64encode(picture)
    forms = (
        encoded,
        encoded.replace(b"/", b"\\/"),
        encoded.replace(b"+", b"\\u002B"),  # as .NET writes it
        encoded.replace(b"=", b"\\u003d"),  # as Gson writes it
        b" \\n" + encoded + b"\\r\\n",
        b"data:image/png;base64," + encoded,
    )
    assert encoded.endswith(b"=")
    answers = [await post(client, b'{"inputs": "%b", "parameters": {"seed": 1}}' % form) for form in forms]
    assert [answer.status_code for answer in answers] == [200] * 6
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


@pytest.mark.parametrize("before", ["A" * PIECE_BYTES, "\N{FOX FACE}" + "\u00e4" * PIECE_BYTES])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"\n", "Invalid control character at character {}"),
        (b"\\x", "Invalid \\escape: at character {}"),
        (b"\\u12x4", "Invalid \\uXXXX escape at character {}"),
        (b"\xff", "not UTF-8 at byte {}"),
    ],
)
@pytest.mark.parametrize("name", ["inputs", "x"])
def test_a_text_that_is_no_json_string_far_behind_its_begin_is_refused_with_its_place(
    name: str, wrong: bytes, reason: str, before: str
) -> None:
    begin = f'{{"{name}": "{before}'
    body = begin.encode() + wrong + b"A" * 4096 + b'", "y": 1, "y": 1}'
    with pytest.raises(MalformedBodyError) as raised:
        parse_json_around(held(body))
    with pytest.raises(MalformedBodyError) as as_a_whole:
        parse_json(body)
    assert str(raised.value) == str(as_a_whole.value)
    assert reason.partition(" at ")[0].rstrip(":") in str(raised.value)


@pytest.mark.parametrize("escape", ["\\u002B", "\\u0041", "\\/"])
@pytest.mark.parametrize("shift", range(8))
def test_an_escape_across_the_end_of_a_piece_is_read_as_a_whole(escape: str, shift: int) -> None:
    inner = "A" * (PIECE_BYTES - shift) + escape + "B" * (shift + 3)
    text = LongText(held(inner.encode()), position=0)
    assert text.decode_base64() == base64.b64decode(json.loads(f'"{inner}"'))


@pytest.mark.parametrize("lead", ["", "A"])
@pytest.mark.parametrize("pad", ["=", "=="])
def test_nothing_may_follow_the_padding_wherever_pieces_end(lead: str, pad: str) -> None:
    for shift in range(8):
        padded = (lead + "A" * (PIECE_BYTES + shift))[: PIECE_BYTES - 4 + shift] + pad
        with pytest.raises(InvalidImageError, match="not base64"):
            LongText(held((padded + "AAAA" * 8).encode()), position=0).decode_base64()


@pytest.mark.parametrize(
    "pieces",
    [["AAAA ", "AAAA"], ["AAAA\n", "\n", "AAAA"], ["AA==", "AAAA"], ["AA==", " ", "AAAA"], ["AAAA", "A"], ["A"]],
)
def test_what_goes_on_behind_its_end_or_is_cut_short_is_no_base64(pieces: list[str]) -> None:
    with pytest.raises(InvalidImageError, match="not base64"):
        list(decoded_base64(pieces))


@pytest.mark.parametrize(
    "pieces", [["AA==", " ", "\n"], [" ", "AAA", "A", "AA=", "="], ["data:image/png;base64,AA", "=="]]
)
def test_blanks_may_stand_around_and_digits_come_in_any_pieces(pieces: list[str]) -> None:
    assert set(b"".join(decoded_base64(pieces))) == {0}


def test_quotation_marks_without_end_are_not_counted_to_the_end() -> None:
    body = held(b'["' + b'","' * (10 << 20))
    started = time.thread_time()
    with pytest.raises(BodyTooLargeError):
        parse_json_around(body)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("name", ["a, b [c]: 'd'", "x-y z", "\N{FOX FACE}\u00e4", 'a "quoted" \\name'])
async def test_a_long_name_is_repeated_as_the_client_wrote_it(client: httpx.AsyncClient, name: str) -> None:
    begin = name * 50
    refused = await post(client, b'{"inputs": "a", "%b%b": 1}' % (json.dumps(begin)[1:-1].encode(), LONG))
    assert refused.json()["error"]["param"] == begin[:100]


LONG = b"A" * 200_000


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"inputs": "%b' % LONG, 400, "Unterminated string starting at character 11."),
        (b'{"inputs": "%b"' % LONG, 400, "Expecting ',' delimiter at character 200013."),
        (b'{"\xc3\xa4": NaN, "inputs": "%b"}' % LONG, 400, "NaN is no value, at character 6."),
        (b'\xef\xbb\xbf{"inputs": "%b", "x": NaN}' % LONG, 400, "NaN is no value, at character 200020."),
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
        (b'{"inputs": "%b\\""}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "/9j/%b\\""}' % LONG, 422, "not base64"),
        (b'{"inputs": "/9j/%b\\\\"}' % LONG, 422, "not base64"),
        (b'{"inputs": "%b"}' % (b"\\\\" * 100_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % (b"\\ud83e\\udd8a" * 10_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % ("\N{FOX FACE}".encode() * 50_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % (b"a, [b] " * 20_000), 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "/9j/", "parameters": {"prompt": "%b"}}' % (b"a, " * 50_000), 422, "prompt: String should have"),
        (b'{"inputs": "%b\\q"}' % LONG, 400, "Invalid \\escape"),
        (b'{"inputs": "/9j/*%b\\q"}' % LONG, 400, "Invalid \\escape"),
        (b'{"inputs": "a", "parameters": {"prompt": "%b\n"}}' % LONG, 400, "Invalid control character"),
        (b'{"inputs": "%b\xff"}' % LONG, 400, "not UTF-8 at byte 200012."),
        (b'{"inputs": "%b\xf0\x9f"}' % LONG, 400, "not UTF-8 at byte 200012."),
        (b'{"a": 1, "a": 2, "inputs": "%b\\q"}' % LONG, 400, "Invalid \\escape"),
        (
            '{"inputs": "%s", "x": NaN}'.replace("%s", "\u00e4" * 100_000).encode(),
            400,
            "no value, at character 100020.",
        ),
        (b"[N%b]" % LONG, 400, "Expecting value at character 1."),
        (b"[NaN%b]" % LONG, 400, "NaN is no value, at character 1."),
        (b'{"inputs": tru%b}' % LONG, 400, "Expecting value at character 11."),
        (b"[" * 200_000, 400, "nested too deeply"),
        (b"[%b1]" % (b"1," * 100_000), 413, "beside the picture"),
        (b'["%b", %b1]' % (LONG, b"1," * 100_000), 413, "beside the picture"),
        (b"[%b1]" % (b'"", ' * 40_000), 413, "beside the picture"),
        (b"[%b" % (b'"" ' * 40_000), 400, "Expecting ',' delimiter at character 4."),
        (b'{"inputs": "\\"%b"}' % LONG, 422, "2000 characters"),
    ],
)
async def test_json_with_a_long_text_is_refused_as_it_would_be_with_a_short_one(
    client: httpx.AsyncClient, body: bytes, status: int, reason: str
) -> None:
    refused = await post(client, body)
    assert refused.status_code == status
    assert reason in refused.json()["detail"]
