"""A route's call of the use case: the uploaded file, a client that disconnects, and the headers of the result."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, UploadFile

from app.api.context import ApiContext
from app.errors import ClientDisconnectedError
from app.images.memory import reserve
from app.inference.generation import Encoding, Generated, PictureFields, TextFields, Timings

_READ_AT_ONCE_BYTES = 1 << 18


async def generate_from_text(
    fields: TextFields, encoding: Encoding, request: Request, context: ApiContext
) -> Generated:
    """Make pictures from a prompt, unless the client disconnects.

    Raises:
        TurboError: As `Generation.from_text`.
    """
    work = context.generation.from_text(fields, encoding=encoding, observer=request.state.observer)
    return await _while_connected(request, work)


async def generate_from_picture(
    fields: PictureFields,
    read: Callable[[], bytes | memoryview],
    encoding: Encoding,
    request: Request,
    context: ApiContext,
) -> Generated:
    """Make pictures from a prompt and the file that `read` returns, unless the client disconnects.

    Raises:
        TurboError: As `Generation.from_picture`.
    """
    work = context.generation.from_picture(fields, read, encoding=encoding, observer=request.state.observer)
    return await _while_connected(request, work)


def read_upload(upload: UploadFile) -> bytes | memoryview:
    """Return an uploaded file's bytes, and release its memory or disk space. Blocks.

    A large file is read in pieces into one block of memory: a single read would hold the GIL for milliseconds.
    """
    with upload.file as file:
        size_bytes = upload.size or 0
        if size_bytes <= _READ_AT_ONCE_BYTES:
            return file.read()
        memory = reserve(size_bytes)
        for at in range(0, size_bytes, _READ_AT_ONCE_BYTES):
            piece = file.read(_READ_AT_ONCE_BYTES)
            memory[at : at + len(piece)] = piece
        return memoryview(memory)


def generation_headers(result: Generated) -> dict[str, str]:
    """Return the headers that describe a result."""
    used = result.used
    headers = {
        "X-Seed": str(result.seeds[0]),
        "X-Steps": str(used.effective_steps),
        "X-Image-Size": f"{used.width}x{used.height}",
        "X-Prompt-Tokens": str(used.prompt_tokens),
        "Server-Timing": _server_timing(result.timings),
        "Cache-Control": "no-store",
    }
    if used.prompt_truncated:
        headers["X-Prompt-Truncated"] = "true"
    return headers


def _server_timing(timings: Timings) -> str:
    """Write the stages as the W3C's Server-Timing header, in milliseconds."""
    stages = {
        "decode": timings.decode_s,
        "queue": timings.queue_s,
        "inference": timings.inference_s,
        "encode": timings.encode_s,
    }
    return ", ".join(
        f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items() if name != "decode" or seconds
    )


async def _while_connected(request: Request, work: Coroutine[Any, Any, Generated]) -> Generated:
    """Await the work, and cancel it as soon as the client disconnects."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectedError("The client hung up before its answer.")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
