"""The soak's load: requests in both modes, clients that keep their connections, and what became of each request."""

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
_IMG2IMG_EVERY = 4
_IDLE_S = 2
"""Idle for longer, a connection is not used again: uvicorn closes it after 5 s, maybe just then."""

_REPEAT_AFTER_S = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request; the same one has the same answer, to the last byte, whenever it is made."""

    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of one request, with moments on `time.perf_counter`. Status 0: the connection broke.

    `due_at` is when it was meant to be sent, `kept_back_s` how long the machine held it up.
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
        """Seconds from the sending to the answer."""
        return self.done_at - self.sent_at

    @property
    def retry_after_s(self) -> int | None:
        """What `Retry-After` says, if it says whole seconds."""
        told = self.headers.get("retry-after", "")
        return int(told) if told.isdecimal() else None


def make_requests(count: int, side: int) -> list[Request]:
    """Make requests that all ask for another picture; every fourth uploads one, and no two the same."""
    pictures = [Picture(side, Prompts.FRESH, number) for number in range(count)]
    return [
        Request("/txt2img", "application/json", picture.body) if number % _IMG2IMG_EVERY else _img2img(picture)
        for number, picture in enumerate(pictures)
    ]


def _img2img(picture: Picture) -> Request:
    fields = {"prompt": picture.prompt, "seed": picture.seed, "width": picture.side, "height": picture.side}
    form = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    form += (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{picture.number}.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    form += _png(picture) + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Request("/img2img", f"multipart/form-data; boundary={_BOUNDARY}", form)


def _png(picture: Picture) -> bytes:
    """Draw clouds of colour, which weigh about what a picture of the real model does."""
    patches = np.random.default_rng(picture.seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    size = (picture.side, picture.side)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


class Client:
    """One client: it opens as many connections as it has requests on their way, and uses them again.

    `key` is its API key; `run_delays_s` says how long those who take part have been kept off the cores so far.
    """

    def __init__(
        self, port: int, *, key: str | None = None, run_delays_s: Callable[[], Sequence[float]] = tuple
    ) -> None:
        self._port = port
        self._key = key
        self._run_delays_s = run_delays_s
        self._idle: deque[tuple[Connection, float]] = deque()

    async def ask(self, request: Request, due_at: float | None = None) -> Outcome:
        """Make one request."""
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
        """Make requests with these gaps between them, whether earlier ones are answered or not; await all answers."""
        asking: list[asyncio.Task[Outcome]] = []
        due_at = time.perf_counter()
        end_at = due_at + seconds
        while (due_at := due_at + next(gaps_s)) < end_at:
            await asyncio.sleep(due_at - time.perf_counter())
            asking.append(asyncio.create_task(self.ask(next(requests), due_at)))
        return await asyncio.gather(*asking)

    async def ask_closely(self, requests: Iterator[Request], *, until: Callable[[], bool]) -> list[Outcome]:
        """Ask again as soon as it is answered, as long as `until` is not so; soon again where there was no answer."""
        outcomes = []
        while not until():
            outcomes.append(await self.ask(next(requests)))
            if outcomes[-1].status == 0:
                await asyncio.sleep(_REPEAT_AFTER_S)
        return outcomes

    def close(self) -> None:
        """Close all connections."""
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    def _take(self) -> Connection:
        """Take the connection that has been idle for longest: so none is for long, while there is much to ask."""
        while self._idle:
            connection, since = self._idle.popleft()
            if time.perf_counter() - since < _IDLE_S:
                return connection
            connection.close()
        return Connection(self._port)


async def closed_loop(
    port: int, requests: Iterator[Request], *, clients: int, until: Callable[[], bool]
) -> list[Outcome]:
    """Ask with so many clients, each of which waits for its answer."""
    asking = [Client(port) for _ in range(clients)]
    outcomes = await asyncio.gather(*(client.ask_closely(requests, until=until) for client in asking))
    for client in asking:
        client.close()
    return [outcome for found in outcomes for outcome in found]


def poisson(per_second: float) -> Iterator[float]:
    """Draw the gaps between arrivals by chance; the same ones in every run."""
    chance = random.Random(0)  # noqa: S311 - no secret
    while True:
        yield chance.expovariate(per_second)


def right(outcomes: Sequence[Outcome], expected: Mapping[Request, bytes]) -> list[Outcome]:
    """Return those that are the very picture that the same request gave alone."""
    return [outcome for outcome in outcomes if outcome.status == OK and outcome.body == expected[outcome.request]]


def wrong(outcomes: Sequence[Outcome], expected: Mapping[Request, bytes]) -> int:
    """Count those that are another picture: somebody else's, or none."""
    return sum(outcome.status == OK and outcome.body != expected[outcome.request] for outcome in outcomes)
