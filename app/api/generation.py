"""Shared by the generation routes: cancellation if the client disconnects, and headers."""

import asyncio
import string
from collections.abc import Coroutine
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import Request

from app.errors import ClientDisconnectedError
from app.inference.generation import Encoding, Generated, Observer


class MakePictures(Protocol):
    """`Generation.from_text` or `Generation.from_uploads`, with what the request asks for."""

    def __call__(self, *, encoding: Encoding, observer: Observer) -> Coroutine[Any, Any, Generated]: ...


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
        "X-Model": quote(used.model, safe=string.punctuation + " "),
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items()),
        "Cache-Control": "no-store",
    }
    if used.prompt_truncated:
        headers["X-Prompt-Truncated"] = "true"
    return headers


async def make_while_connected(make: MakePictures, encoding: Encoding, request: Request) -> Generated:
    """Make pictures, and stop if the client disconnects.

    Raises:
        ClientDisconnectedError: The client disconnected first.
        TurboError: As `make`.
    """
    working = asyncio.create_task(make(encoding=encoding, observer=request.state.observer))
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
