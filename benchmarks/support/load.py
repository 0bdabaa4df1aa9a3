"""The load: closed loops of clients that wait for their pictures, and open loops of random arrivals."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.support.http_client import Connection
from benchmarks.support.pictures import Picture


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one request. Status 0 means no answer; the body is then the reason."""

    picture: Picture
    status: int
    body: bytes
    latency_s: float


async def closed_loop(port: int, path: str, pictures: Sequence[Picture], *, clients: int) -> list[Outcome]:
    """Request the pictures with `clients` clients, each of which sends its next request when it has its answer."""
    waiting = iter(pictures)

    async def client() -> list[Outcome]:
        async with Connection(port) as connection:
            return [await _ask(connection, path, picture, time.perf_counter()) for picture in waiting]

    return list(itertools.chain.from_iterable(await asyncio.gather(*(client() for _ in range(clients)))))


async def open_loop(port: int, path: str, pictures: Sequence[Picture], *, per_second: float) -> list[Outcome]:
    """Request the pictures at the moments of a Poisson process, without waiting for earlier answers.

    Latency counts from the planned moment.
    """
    chance = random.Random(0)  # noqa: S311 - no secret
    moments = itertools.accumulate(chance.expovariate(per_second) for _ in pictures)
    return await timed_loop(port, path, pictures, list(moments))


async def timed_loop(port: int, path: str, pictures: Sequence[Picture], moments_s: Sequence[float]) -> list[Outcome]:
    """Request each picture at its moment, in seconds from now. Otherwise as `open_loop`.

    The connection that has been idle for the longest time is used first, so that none is idle until a proxy closes it.
    """
    free: list[Connection] = []

    async def ask(picture: Picture, due: float) -> Outcome:
        await asyncio.sleep(due - time.perf_counter())
        connection = free.pop(0) if free else Connection(port)
        outcome = await _ask(connection, path, picture, due)
        free.append(connection)
        return outcome

    began = time.perf_counter()
    asking = [ask(picture, began + moment_s) for picture, moment_s in zip(pictures, moments_s, strict=True)]
    outcomes = await asyncio.gather(*asking)
    for connection in free:
        connection.close()
    return list(outcomes)


async def _ask(connection: Connection, path: str, picture: Picture, since: float) -> Outcome:
    try:
        answer = await connection.post(path, picture.body, content_type=picture.content_type)
    except (OSError, asyncio.IncompleteReadError) as error:
        return Outcome(picture, 0, repr(error).encode(), time.perf_counter() - since)
    return Outcome(picture, answer.status, answer.body, time.perf_counter() - since)


@dataclass
class Probe:
    """Requests one path every 20 ms on its own connection.

    `run_delays_s` returns how long each measured process has waited for a core so far. Net latencies leave that out.
    """

    port: int
    path: str
    run_delays_s: Callable[[], Sequence[float]] = tuple

    def __post_init__(self) -> None:
        self.latencies_s: list[float] = []
        self.net_latencies_s: list[float] = []
        self.failures = 0

    async def run(self) -> None:
        """Send requests until cancelled."""
        async with Connection(self.port) as connection:
            while True:
                delays_s, began = self.run_delays_s(), time.perf_counter()
                answer = await connection.get(self.path)
                self.latencies_s.append(time.perf_counter() - began)
                self.net_latencies_s.append(self.latencies_s[-1] - kept_back_s(delays_s, self.run_delays_s()))
                self.failures += answer.status != 200  # noqa: PLR2004 - HTTP's own
                await asyncio.sleep(max(0.0, began + 0.02 - time.perf_counter()))


def kept_back_s(before_s: Sequence[float], after_s: Sequence[float]) -> float:
    """Return how long the machine delayed an exchange, from the run delays of its processes before and after it.

    The longest delay counts, not the sum, because the processes may have waited at the same time.
    """
    return max((after - before for before, after in zip(before_s, after_s, strict=True)), default=0.0)
