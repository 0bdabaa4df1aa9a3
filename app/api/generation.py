"""What generation routes share: the upload's bytes, cancellation if the client disconnects, and headers."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request, UploadFile

from app.errors import ClientDisconnectedError
from app.images.memory import reserve
from app.inference.generation import Generated

_READ_AT_ONCE_BYTES = 1 << 18


def read_upload(upload: UploadFile) -> bytes | memoryview:
    """Return an uploaded file's bytes, and release its memory or disk space. Blocks.

    A large file is read in pieces, because a single read would hold the GIL for milliseconds.
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
    """Return the headers that describe a result; `Server-Timing` is in milliseconds."""
    used, timings = result.used, result.timings
    stages = {"queue": timings.queue_s, "inference": timings.inference_s, "encode": timings.encode_s}
    if timings.decode_s:
        stages = {"decode": timings.decode_s, **stages}
    headers = {
        "X-Seed": str(result.seeds[0]),
        "X-Steps": str(used.effective_steps),
        "X-Image-Size": f"{used.width}x{used.height}",
        "X-Prompt-Tokens": str(used.prompt_tokens),
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items()),
        "Cache-Control": "no-store",
    }
    if used.prompt_truncated:
        headers["X-Prompt-Truncated"] = "true"
    return headers


async def while_connected(request: Request, work: Coroutine[Any, Any, Generated]) -> Generated:
    """Await the work, and cancel it if the client disconnects.

    Raises:
        ClientDisconnectedError: The client disconnected first.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectedError("The client disconnected before its answer.")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
