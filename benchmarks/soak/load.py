"""The soak's load: requests in all modes, clients with persistent connections, and the outcome of each request."""

import asyncio
import io
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.support.http_client import Connection
from benchmarks.support.load import kept_back_s
from benchmarks.support.pictures import Picture, Prompts

OK, TOO_MANY_REQUESTS, INTERNAL_ERROR, GATEWAY_TIMEOUT = 200, 429, 500, 504

_BOUNDARY = "soak-boundary"
_UPLOAD_EVERY, _MASK_EVERY = 4, 8
_IDLE_S = 2
"""A connection that was idle for longer is not reused: uvicorn closes it after 5 s, perhaps during a request."""

_REPEAT_AFTER_S = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request. Its answer is byte-identical every time."""

    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The result of one request, with times on `time.perf_counter`. Status 0 means that the connection broke.

    `due_at` is the planned moment of sending. `kept_back_s` is the delay that the machine caused.
    """

    request: Request
    due_at: float
    sent_at: float
    done_at: float
    kept_back_s: float
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def latency_s(self) -> float:
        """Seconds from sending to the answer."""
        return self.done_at - self.sent_at

    @property
    def retry_after_s(self) -> int | None:
        """The value of `Retry-After`, if it is in whole seconds."""
        told = self.headers.get("retry-after", "")
        return int(told) if told.isdecimal() else None


def make_requests(count: int, side: int) -> list[Request]:
    """Make requests for different pictures.

    Every fourth request uploads a picture, a different one each time. Every eighth uploads a mask too.
    """
    pictures = [Picture(side, Prompts.FRESH, number) for number in range(count)]
    return [
        _with_upload(picture, masked=number % _MASK_EVERY == 0)
        if number % _UPLOAD_EVERY == 0
        else Request("/txt2img", "application/json", picture.body)
        for number, picture in enumerate(pictures)
    ]


def _with_upload(picture: Picture, *, masked: bool) -> Request:
    fields = {"prompt": picture.prompt, "seed": picture.seed, "width": picture.side, "height": picture.side}
    form = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    form += _file("image", picture, _png(picture))
    if masked:
        form += _file("mask", picture, _mask(picture))
    form += f"--{_BOUNDARY}--\r\n".encode()
    return Request("/inpaint" if masked else "/img2img", f"multipart/form-data; boundary={_BOUNDARY}", form)


def _file(name: str, picture: Picture, content: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{picture.number}.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    return head.encode() + content + b"\r\n"


def _mask(picture: Picture) -> bytes:
    """Draw a mask that is white in a quarter of the picture, which is drawn anew."""
    mask, file = Image.new("L", (picture.side, picture.side)), io.BytesIO()
    mask.paste(255, (0, 0, picture.side // 2, picture.side // 2))
    mask.save(file, "PNG")
    return file.getvalue()


def _png(picture: Picture) -> bytes:
    """Draw clouds of colour, whose PNG is about as large as a picture of the real model."""
    patches = np.random.default_rng(picture.seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    size = (picture.side, picture.side)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


class Client:
    """One client. It opens a connection for each concurrent request, and reuses connections.

    `key` is the API key. `run_delays_s` returns how long each measured process has waited for a core so far.
    """

    def __init__(
        self, port: int, *, key: str | None = None, run_delays_s: Callable[[], Sequence[float]] = tuple
    ) -> None:
        self._port = port
        self._key = key
        self._run_delays_s = run_delays_s
        self._idle: deque[tuple[Connection, float]] = deque()

    async def ask(self, request: Request, due_at: float | None = None) -> Outcome:
        """Send one request; an outcome with status 0 stands for a broken connection."""
        connection = self._take()
        delays_s, sent_at = self._run_delays_s(), time.perf_counter()
        due_at = sent_at if due_at is None else due_at
        try:
            answer = await connection.post(request.path, request.body, content_type=request.content_type, key=self._key)
        except (OSError, asyncio.IncompleteReadError) as error:
            return Outcome(request, due_at, sent_at, time.perf_counter(), 0.0, 0, repr(error).encode(), {})
        done_at = time.perf_counter()
        self._idle.append((connection, done_at))
        held_up_s = kept_back_s(delays_s, self._run_delays_s())
        return Outcome(request, due_at, sent_at, done_at, held_up_s, answer.status, answer.body, answer.headers)

    async def ask_openly(
        self, requests: Iterator[Request], gaps_s: Iterator[float], *, seconds: float
    ) -> list[Outcome]:
        """Send requests with these gaps, without waiting for earlier answers. Then await all answers."""
        asking: list[asyncio.Task[Outcome]] = []
        due_at = time.perf_counter()
        end_at = due_at + seconds
        while (due_at := due_at + next(gaps_s)) < end_at:
            await asyncio.sleep(due_at - time.perf_counter())
            asking.append(asyncio.create_task(self.ask(next(requests), due_at)))
        return await asyncio.gather(*asking)

    async def ask_closely(self, requests: Iterator[Request], *, until: Callable[[], bool]) -> list[Outcome]:
        """Send a request after each answer, until `until()` is true. After a broken connection, wait 50 ms first."""
        outcomes = []
        while not until():
            outcomes.append(await self.ask(next(requests)))
            if outcomes[-1].status == 0:
                await asyncio.sleep(_REPEAT_AFTER_S)
        return outcomes

    def close(self) -> None:
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    def _take(self) -> Connection:
        """Return the connection that was idle for longest, so under load no connection stays idle for long."""
        while self._idle:
            connection, since = self._idle.popleft()
            if time.perf_counter() - since < _IDLE_S:
                return connection
            connection.close()
        return Connection(self._port)


async def closed_loop(
    port: int, requests: Iterator[Request], *, clients: int, until: Callable[[], bool]
) -> list[Outcome]:
    """Send requests from `clients` clients that wait for their answers, until `until()` is true."""
    asking = [Client(port) for _ in range(clients)]
    outcomes = await asyncio.gather(*(client.ask_closely(requests, until=until) for client in asking))
    for client in asking:
        client.close()
    return [outcome for found in outcomes for outcome in found]


def poisson(per_second: float) -> Iterator[float]:
    """Draw random gaps between arrivals in seconds; every run has the same gaps."""
    chance = random.Random(0)  # noqa: S311 - no secret
    while True:
        yield chance.expovariate(per_second)


def right(outcomes: Sequence[Outcome], expected: Mapping[Request, bytes]) -> list[Outcome]:
    """Return the outcomes whose picture is byte-identical to the answer to the same request alone."""
    return [outcome for outcome in outcomes if outcome.status == OK and outcome.body == expected[outcome.request]]


def wrong(outcomes: Sequence[Outcome], expected: Mapping[Request, bytes]) -> int:
    """Count the outcomes with status 200 whose body is not the requested picture."""
    return sum(outcome.status == OK and outcome.body != expected[outcome.request] for outcome in outcomes)
