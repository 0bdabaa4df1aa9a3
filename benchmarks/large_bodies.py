"""Measures how long the largest bodies block the service's event loop, with the fake pipeline over a real socket.

    .venv/bin/python -m benchmarks.large_bodies [--rounds 5] [--only WORDS]

Bodies of 31 MiB, and smaller files that are expensive to decode, are sent one after another to the routes that take
pictures. After each body, the loop's lags are read, and the longest counts; loop_lag.py explains the measurement. Exit
code 1: a body blocked the loop for more than 20 ms, net, in the median of the rounds. README.md explains why WebP has
no limit. The table is in Markdown.
"""

import argparse
import asyncio
import base64
import io
import statistics
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.soak.service import until_ready
from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import environment, interpreter, launch
from benchmarks.support.http_client import Connection
from benchmarks.support.loop_lag import read_lags
from benchmarks.support.ports import free_port

_BYTES = 31 << 20
_IN_BASE64 = _BYTES // 4 * 3 - 1024
_MOST_MS = 20
_START_LIMIT_S = 60
_SETTLE_S = 0.05
"""Wait for the measuring task to record its last lag."""

_JSON, _BINARY = "application/json", "application/octet-stream"
_BOUNDARY = "part"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_RGB, _PALETTE, _RGBA = 2, 3, 6
_CHUNKS = 65_000  # the service's limit is 65,536


@dataclass(slots=True)
class _Case:
    """A body, the status of its answer, and the lags."""

    title: str
    path: str
    content_type: str
    body: bytes
    status: int = 0
    raw_ms: list[float] = field(default_factory=list)
    net_ms: list[float] = field(default_factory=list)


def _noise_png(size_bytes: int) -> bytes:
    """Return noise, which does not compress, as Pillow writes it: in chunks of 64 KiB."""
    file = io.BytesIO()
    Image.fromarray(_noise(3000, size_bytes // 9000 - 4)).save(file, "PNG", compress_level=1)
    return _as_long_as_allowed(file.getvalue(), size_bytes)


def _one_chunk_png(size_bytes: int) -> bytes:
    """Return noise in a single chunk without compression."""
    rows = _noise(3000, size_bytes // 9000 - 4)
    rows = np.insert(rows.reshape(len(rows), -1), 0, 0, axis=1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 3000, len(rows), 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 0)),
        (b"IEND", b""),
    )
    file = b"".join(_chunk(name, content) for name, content in chunks)
    return _as_long_as_allowed(_PNG_MAGIC + file, size_bytes)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _noise_jpeg(size_bytes: int) -> bytes:
    """Return noise at the highest quality: a single scan, which is nearly the whole file."""
    file = io.BytesIO()
    Image.fromarray(_noise(3000, size_bytes // 12_600)).save(file, "JPEG", quality=100, subsampling=0)
    return _as_long_as_allowed(file.getvalue(), size_bytes)


def _noise_webp() -> bytes:
    """Return lossless noise with about the largest allowed number of pixels."""
    file = io.BytesIO()
    Image.fromarray(_noise(2200, 2200)).save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def _noise(width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _as_long_as_allowed(file: bytes, size_bytes: int) -> bytes:
    """Return the file after a check that it fills at least 90 % of the body."""
    assert 0.9 * size_bytes < len(file) <= size_bytes, f"{len(file)} of {size_bytes} bytes"
    return file


def _garbage() -> Iterator[tuple[str, bytes]]:
    """Yield titles and bodies that begin as a picture and continue as garbage."""
    yield "no picture", b"x" * _BYTES
    yield "no picture, incomplete form boundaries", f"\r\n--{_BOUNDARY[:-1]}".encode() * (_BYTES // 8)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 3, 0, 0, 0))
    yield "PNG, a palette of nearly 31 MiB", _PNG_MAGIC + header + _chunk(b"PLTE", bytes(_BYTES - 100))
    yield "PNG, one chunk without an end", _PNG_MAGIC + struct.pack(">I4s", _BYTES, b"IDAT") + bytes(_BYTES - 16)
    yield "PNG of a thousand chunks", _PNG_MAGIC + (struct.pack(">I4s", 32_000, b"IDAT") + bytes(32_004)) * 1000
    yield "JPEG, only escaped bytes", b"\xff\xd8\xff\xda\0\x02" + b"\xff\0" * ((_BYTES - 6) // 2)
    yield "JPEG, only fill bytes", b"\xff\xd8\xff\xda\0\x02" + b"\xff" * (_BYTES - 6)
    yield "JPEG, scan of zeros", b"\xff\xd8\xff\xda\0\x02" + bytes(_BYTES - 6)
    for name in (b"VP8 ", b"VP8L"):
        head = b"RIFF" + struct.pack("<I4s4sI", _BYTES - 8, b"WEBP", name, _BYTES - 20)
        yield f"WebP, {name.decode().strip()} of zeros", head + b"\x2f" + bytes(_BYTES - 21)


def _costly() -> Iterator[tuple[str, bytes]]:
    """Yield titles and files that are expensive to decode for their size."""
    side = 2048
    noise = np.random.default_rng(0).integers(0, 256, (side, 1 + 4 * side), np.uint8)
    noise[:, 0] = 0
    yield "PNG, RGBA of 4 megapixels", _png(side, side, _RGBA, zlib.compress(noise.tobytes(), 1))
    clear = _chunk(b"PLTE", bytes(768)) + _chunk(b"tRNS", b"\x80" * 200)
    yield (
        "PNG, clear palette of 4 megapixels",
        _png(side, side, _PALETTE, zlib.compress(bytes(side * (1 + side))), before=clear),
    )
    rows = np.insert(_noise(3000, 3000).reshape(3000, -1), 0, 0, axis=1)
    stored = zlib.compress(rows.tobytes(), 0)
    length = -(-len(stored) // _CHUNKS)
    parts = (stored[at : at + length] for at in range(0, len(stored), length))
    yield "PNG, many chunks of pixels", _png(3000, 3000, _RGB, *parts)
    yield "PNG, many empty chunks", _png(64, 64, _RGB, *[b""] * _CHUNKS, zlib.compress(bytes(64 * 193)))
    mixed = b"".join(_chunk(b"IDAT", b"") + _chunk(b"tEXt", b"") for _ in range(_CHUNKS // 2))
    yield "PNG, many alternating chunks", _png(64, 64, _RGB, zlib.compress(bytes(64 * 193)), before=mixed)
    entries = _BYTES // 4 - 100
    opaque = bytearray(b"\xff" * entries)
    opaque[entries // 2], opaque[-1] = 0, 254
    clear = _chunk(b"PLTE", bytes(3 * entries)) + _chunk(b"tRNS", bytes(opaque))
    yield (
        "PNG, palette and transparency of nearly 31 MiB",
        _png(64, 64, _PALETTE, zlib.compress(bytes(64 * 65)), before=clear),
    )


def _png(width: int, height: int, color: int, *pixels: bytes, before: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    return b"".join((_PNG_MAGIC, header, before, *(_chunk(b"IDAT", part) for part in pixels), _chunk(b"IEND", b"")))


def _in_json(inputs: bytes, *, parameters: bytes = b"{}") -> bytes:
    return b'{"inputs": "' + inputs + b'", "parameters": ' + parameters + b"}"


def _in_form(file: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--{_BOUNDARY}\r\n'
    head += 'Content-Disposition: form-data; name="image"; filename="picture"\r\n\r\n'
    return head.encode() + file + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _cases() -> Iterator[_Case]:
    small = {"PNG": _noise_png(_IN_BASE64), "JPEG": _noise_jpeg(_IN_BASE64)}
    for kind, file in small.items():
        yield _Case(f"JSON, {kind}", "/", _JSON, _in_json(base64.b64encode(file)))
    url = b"data:image/png;base64," + base64.b64encode(small["PNG"])
    yield _Case("JSON, PNG as a data URL", "/", _JSON, _in_json(url))
    values = b'"a":[' + b"1," * ((_BYTES - 100) // 2) + b"1]"
    several = {
        "a string that is not base64": _in_json(b"iVBORw0KGgo" + b"*" * (_BYTES - 100)),
        "a string of escaped quotes": _in_json(b'\\"' * ((_BYTES - 100) // 2)),
        "a string of backslashes": _in_json(b"\\\\" * ((_BYTES - 100) // 2)),
        "a string that is not ASCII": _in_json("\N{FOX FACE}".encode() * ((_BYTES - 100) // 4)),
        "small numbers": _in_json(b"a", parameters=b"{" + values + b"}"),
        "small strings": _in_json(b"a", parameters=b'{"a": ["' + b'a","' * ((_BYTES - 100) // 4) + b'"]}'),
        "only brackets": b"[" * _BYTES,
        "only blanks": b" " * _BYTES,
        "a string without an end": _in_json(b"A" * (_BYTES - 100))[:-30],
        "a long key": _in_json(b"a", parameters=b'{"' + b"a" * (_BYTES - 100) + b'": 1}'),
    }
    for title, body in several.items():
        yield _Case(f"JSON, {title}", "/", _JSON, body)
    pictures = {
        "PNG": _noise_png(_BYTES - 1024),
        "PNG of one chunk": _one_chunk_png(_BYTES - 1024),
        "JPEG": _noise_jpeg(_BYTES - 1024),
        "WebP": _noise_webp(),
        **dict(_garbage()),
    }
    for title, body in (pictures | dict(_costly())).items():
        yield _Case(f"bare, {title}", "/", _BINARY, body)
    for title, body in pictures.items():
        yield _Case(f"form, {title}", "/img2img", _FORM, _in_form(body))


async def _measure(cases: list[_Case], port: int, pid: int, lag_file: Path, *, rounds: int) -> None:
    await until_ready(port, within_s=_START_LIMIT_S, log=lag_file.with_name("service.log"))
    for _ in range(rounds):
        for case in cases:
            await asyncio.sleep(_SETTLE_S)
            read_lags(pid, lag_file)  # clears the lags so far
            async with Connection(port) as connection:
                answer = await connection.post(case.path, case.body, content_type=case.content_type)
            case.status = answer.status
            await asyncio.sleep(_SETTLE_S)
            lags = read_lags(pid, lag_file)
            case.raw_ms.append(1000 * max(lags["raw_s"]))
            case.net_ms.append(1000 * max(lags["net_s"]))


def _print(cases: list[_Case], *, rounds: int) -> None:
    print(f"Longest time that the event loop was blocked, ms, {rounds} rounds; {machine.describe()}\n")
    print("| route | body | status | net, median | net, max | raw, median | raw, max |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        figures = [
            f"{figure:.1f}" for lags in (case.net_ms, case.raw_ms) for figure in (statistics.median(lags), max(lags))
        ]
        print(f"| {case.path} | {case.title} | {case.status} | {' | '.join(figures)} |")


def main() -> int:
    """Measure, and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure only bodies whose route and title contain this text")
    arguments = parser.parse_args()
    cases = [case for case in _cases() if arguments.only in f"{case.path} {case.title}"]
    with tempfile.TemporaryDirectory() as folder:
        lag_file, port = Path(folder) / "lags.json", free_port()
        settings = {"TURBO_MODEL": "fake", "TURBO_PORT": str(port), "TURBO_LOG_LEVEL": "warning"}
        words = [str(interpreter()), "-m", "benchmarks.support.watched_service", str(lag_file)]
        service = launch(words, environment(Path("fake"), settings), Path(folder) / "service.log")
        try:
            asyncio.run(_measure(cases, port, service.pid, lag_file, rounds=arguments.rounds))
        finally:
            process_tree.end(service.pid)
            service.wait()
    _print(cases, rounds=arguments.rounds)
    return int(any(statistics.median(case.net_ms) > _MOST_MS for case in cases if "WebP" not in case.title))


if __name__ == "__main__":
    sys.exit(main())
