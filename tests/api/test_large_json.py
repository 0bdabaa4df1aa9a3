"""JSON with a picture of megabytes in it, which is never copied, searched or decoded as a whole."""

import asyncio
import base64
import gc
import io
import json
import mmap
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

from app.api.large_json import PIECE_BYTES, decode_base64, parse_large_json, unescape
from app.errors import BodyTooLargeError, InvalidImageError
from app.images.memory import reserve
from app.main import create_app
from app.settings import Settings
from tests.conftest import running
from tests.support.gated_pipeline import GatedPipeline

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


def file_of(body: bytes) -> bytes:
    _, texts = parse_large_json(held(body))
    (text,) = texts.values()
    return bytes(decode_base64(unescape(text)))


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
    _, texts = parse_large_json(body)
    (text,) = texts.values()
    decoded = decode_base64(unescape(text))
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
    for name in ("parse_large_json", "parse_json", "unescape", "decode_base64", "decode_image"):
        assert called[name]
        assert loop_thread not in called[name]
    assert loop_thread in called["read_body"]


@pytest.mark.parametrize("media_type", ["application/json", "image/png"])
async def test_a_request_that_waits_for_the_device_does_not_keep_its_upload(
    pipeline: GatedPipeline, picture: bytes, media_type: str
) -> None:
    body = b'{"inputs": "%b"}' % base64.b64encode(picture) if media_type == "application/json" else picture
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        while pipeline.entered.acquire(blocking=False):
            pass
        pipeline.gate.clear()
        waiting = asyncio.create_task(client.post("/", content=body, headers={"Content-Type": media_type}))
        await asyncio.to_thread(pipeline.entered.acquire)
        uploads = [found for found in gc.get_objects() if isinstance(found, mmap.mmap) and not found.closed]
        pipeline.gate.set()
        assert (await waiting).status_code == 200
    assert not uploads


@pytest.mark.parametrize("shift", range(4))
def test_escapes_are_read_wherever_pieces_end(shift: int) -> None:
    file = b"\xff" * (PIECE_BYTES + 3 * shift)  # in base64 slashes alone
    escaped = base64.b64encode(file).replace(b"/", b"\\/")
    body = b'{"inputs": "\\n%b%b\\n"}' % (b" " * shift, escaped)
    value, _ = parse_large_json(held(body))
    assert value["inputs"].lstrip().startswith("////")
    assert file_of(body) == file


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
    assert file_of(b'{"inputs": "%b"}' % base64.b64encode(file)) == file


@pytest.mark.parametrize(
    "wrong",
    [b"*", b"A A", b"=AAA", b"\\n\\nA", b"\n", b"\\x", b"\\u12x4", b"\\u1234", b"\xff", "\u00e4".encode()],
    ids=["sign", "blank", "early end", "lines", "control", "escape", "digits", "character", "not UTF-8", "not ASCII"],
)
@pytest.mark.parametrize("shift", [0, 4094])
def test_a_text_that_is_not_base64_far_behind_its_begin_is_rejected(wrong: bytes, shift: int) -> None:
    body = b'{"inputs": "%b%b%b"}' % (b"A" * (PIECE_BYTES - shift), wrong, b"A" * 4096)
    with pytest.raises(InvalidImageError, match="not base64"):
        file_of(body)


@pytest.mark.parametrize("escape", ["\\u002B", "\\u0041", "\\/"])
@pytest.mark.parametrize("shift", range(8))
def test_an_escape_across_the_end_of_a_piece_is_read_as_a_whole(escape: str, shift: int) -> None:
    inner = "A" * (PIECE_BYTES - shift) + escape + "B" * (shift + 3)
    assert decode_base64(unescape(held(inner.encode()))) == base64.b64decode(json.loads(f'"{inner}"'))


@pytest.mark.parametrize("lead", ["", "A"])
@pytest.mark.parametrize("pad", ["=", "=="])
def test_nothing_may_follow_the_padding_wherever_pieces_end(lead: str, pad: str) -> None:
    for shift in range(8):
        padded = (lead + "A" * (PIECE_BYTES + shift))[: PIECE_BYTES - 4 + shift] + pad
        with pytest.raises(InvalidImageError, match="not base64"):
            decode_base64(held((padded + "AAAA" * 8).encode()))


@pytest.mark.parametrize(
    "text", ["AAAA AAAA", "AAAA\n\nAAAA", "AA==AAAA", "AA== AAAA", "AAAAA", "AAAA=", "A", "data:AAAA"]
)
def test_text_behind_its_end_or_cut_short_is_not_base64(text: str) -> None:
    with pytest.raises(InvalidImageError, match="not base64"):
        decode_base64(held(text.encode()))


@pytest.mark.parametrize("text", ["AA== \n", " AAAAAAA=", "\n data:image/png;base64,AA== "])
def test_white_space_and_the_head_of_a_data_url_may_surround_base64(text: str) -> None:
    assert set(bytes(decode_base64(held(text.encode())))) == {0}


def test_quotation_marks_without_end_are_not_counted_to_the_end() -> None:
    body = held(b'["' + b'","' * (10 << 20))
    started = time.thread_time()
    with pytest.raises(BodyTooLargeError):
        parse_large_json(body)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("name", "shown"), [("a, b [c]: 'd'" * 50, "a, b [c]: 'd'" * 50), ("x\N{FOX FACE}", "x" + "." * 99)]
)
async def test_of_a_long_name_the_ascii_it_begins_with_is_repeated(name: str, shown: str) -> None:
    async with running(create_app(Settings(model="fake", strict=True))) as client:
        rejected = await post(client, b'{"inputs": "a", "%b%b": 1}' % (name.encode(), LONG))
    assert rejected.json()["errors"][0]["param"] == shown[:100]


@pytest.mark.parametrize("unused", [b'"other": "%b", ', b'"a": ["%b"], ', b'"%b": 1, ', b'"a": "\\"%b", '])
async def test_further_long_texts_are_not_read(client: httpx.AsyncClient, picture: bytes, unused: bytes) -> None:
    encoded = base64.b64encode(picture)
    alone = await post(client, b'{"inputs": "%b", "parameters": {"seed": 1}}' % encoded)
    beside = await post(client, b'{%b"inputs": "%b", "parameters": {"seed": 1}}' % (unused % LONG, encoded))
    assert (beside.status_code, beside.content) == (200, alone.content)


def test_every_long_text_is_found() -> None:
    files = [np.random.default_rng(seed).bytes(60_000) for seed in range(3)]
    body = b'{"a": ["%b", "%b"], "b": "short", "c": "%b"}' % tuple(map(base64.b64encode, files))
    value, texts = parse_large_json(held(body))
    stand_ins = [*value["a"], value["c"]]
    assert [bytes(decode_base64(unescape(texts[stand_in]))) for stand_in in stand_ins] == files
    assert value["b"] == "short"


LONG = b"A" * 200_000


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"inputs": "%b' % LONG, 400, "The body is not JSON: Unterminated string starting."),
        (b'{"inputs": "%b"' % LONG, 400, "The body is not JSON: Expecting ',' delimiter."),
        (b'{"\xc3\xa4": NaN, "inputs": "%b"}' % LONG, 400, "NaN is not a JSON value."),
        (b'\xef\xbb\xbf{"inputs": "%b", "x": NaN}' % LONG, 400, "NaN is not a JSON value."),
        (b'{"inputs": "%b", "x": NaN}' % LONG, 400, "NaN is not a JSON value."),
        (b'{"inputs": "%b", "inputs": "a"}' % LONG, 422, "inputs is sent twice."),
        (b'{"inputs": "%b", "parameters": {"seed": 1, "seed": 1}}' % LONG, 422, "seed is sent twice."),
        (b'{"inputs": "%b", "parameters": {"seed": -1}}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "/9j/%b", "parameters": {"seed": -1}}' % LONG, 422, "greater than or equal to 0"),
        (b'{"inputs": "/9j/%b"}' % LONG, 422, "truncated or damaged"),
        (b'{"inputs": "%b"}' % LONG, 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "%b"}' % (b"\\n" * 100_000), 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "/9j/", "parameters": {"prompt": "%b"}}' % LONG, 422, "prompt: String should have at most 2000"),
        (b'{"inputs": "a", "parameters": {"seed": "%b"}}' % LONG, 422, "seed: Input should be a valid integer"),
        (b'{"inputs": "/9j/", "%b": 1}' % LONG, 422, "truncated or damaged"),
        (b'{"inputs": "a"%b}' % (b" " * 200_000), 413, "beside its pictures"),
        (b'{"inputs": %b}' % (b"1" * 200_000), 413, "beside its pictures"),
        (b" " * 200_000, 413, "beside its pictures"),
        (b"1" * 200_000, 413, "beside its pictures"),
        (b'["%b"]' % LONG, 422, "must be a JSON object"),
        (b'{"inputs": "%b\\""}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "/9j/%b\\""}' % LONG, 422, "not base64"),
        (b'{"inputs": "/9j/%b\\\\"}' % LONG, 422, "not base64"),
        (b'{"inputs": "/9j/%b\\"AAAA"}' % LONG, 422, "not base64"),
        (b'{"inputs": "AAAA\\"%b", "parameters": {"prompt": ""}}' % LONG, 422, "not base64"),
        (b'{"inputs": "a", "x": "%b" "y"}' % LONG, 400, "The body is not JSON: Expecting ',' delimiter."),
        (b'{"inputs": "a"%b, "x": 1}' % (b" " * 200_000), 413, "beside its pictures"),
        (b'{"inputs": "%b"}' % (b"\\\\" * 100_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % (b"\\ud83e\\udd8a" * 10_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % ("\N{FOX FACE}".encode() * 50_000), 422, "2000 characters"),
        (b'{"inputs": "%b"}' % (b"a, [b] " * 20_000), 422, "prompt: String should have at most 2000 characters"),
        (b'{"inputs": "/9j/", "parameters": {"prompt": "%b"}}' % (b"a, " * 50_000), 422, "prompt: String should have"),
        (b'{"inputs": "%b\\q"}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "/9j/%b\\q"}' % LONG, 422, "not base64"),
        (b'{"inputs": "a", "parameters": {"prompt": "%b\n"}}' % LONG, 422, "2000 characters"),
        (b'{"inputs": "%b", "x": "\xff"}' % LONG, 400, "The body is not JSON: not UTF-8."),
        (b'{"inputs": "/9j/%b\xf0\x9f"}' % LONG, 422, "not base64"),
        (b'{"a": 1, "a": 2, "inputs": "%b", x}' % LONG, 400, "Expecting property name"),
        (
            '{"inputs": "%s", "x": NaN}'.replace("%s", "\u00e4" * 100_000).encode(),
            400,
            "NaN is not a JSON value.",
        ),
        (b"[N%b]" % LONG, 413, "beside its pictures"),
        (b"[NaN%b]" % LONG, 413, "beside its pictures"),
        (b'{"inputs": tru%b}' % LONG, 413, "beside its pictures"),
        (b"[" * 200_000, 413, "beside its pictures"),
        (b"[%b1]" % (b"1," * 100_000), 413, "beside its pictures"),
        (b'["%b", %b1]' % (LONG, b"1," * 100_000), 413, "beside its pictures"),
        (b"[%b1]" % (b'"", ' * 40_000), 413, "beside its pictures"),
        (b"[%b" % (b'"" ' * 40_000), 413, "beside its pictures"),
        (b'{"inputs": "\\"%b"}' % LONG, 422, "2000 characters"),
    ],
)
async def test_json_with_a_long_text_is_rejected_with_the_reason(
    client: httpx.AsyncClient, body: bytes, status: int, reason: str
) -> None:
    refused = await post(client, body)
    assert refused.status_code == status
    assert reason in refused.json()["detail"]
