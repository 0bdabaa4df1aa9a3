"""Two failures with real processes, beside the simulation: a process is killed, and the cache loses its pictures."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.arrivals import arrivals, steady
from benchmarks.fleet.cache import OK, Cache, draw, zipf
from benchmarks.fleet.clients import PATIENT
from benchmarks.fleet.failing import Seen, row, seen
from benchmarks.fleet.fleet import Fleet, Outcome, Starts
from benchmarks.fleet.reality import SECONDS, SIDE, Device, alone, processes
from benchmarks.fleet.replica import FULL, NOT_READY, after
from benchmarks.scale_out import PROCESSES
from benchmarks.support.http_client import Answer, Connection
from benchmarks.support.nginx import Nginx
from benchmarks.support.pictures import Picture, Prompts, Supply

_AT_S, _LASTS_S, _BUSY = 20.0, 60.0, 0.75
_URLS, _EXPONENT, _CACHED_LOAD = 400, 0.9, 3.0
"""The cache's clients ask for three times what the processes can make."""

Ask = Callable[[Connection], Coroutine[Any, Any, Answer]]


async def _load(
    port: int, asks: Sequence[Ask], times: npt.NDArray[np.float64], fail: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Send requests at these moments, and let something fail meanwhile.

    The clients honour `Retry-After`. If a connection breaks, they wait a second.
    """
    loop, free = asyncio.get_running_loop(), list[Connection]()
    began = loop.time()
    loop.call_at(began + _AT_S, fail)

    async def request(ask: Ask, due_s: float) -> Outcome:
        await asyncio.sleep(began + due_s - loop.time())
        attempts = refused = 0
        while True:
            attempts += 1
            connection = free.pop(0) if free else Connection(port)
            try:
                answer = await ask(connection)
                status, retry_after_s = answer.status, int(answer.headers.get("retry-after", "1"))
                free.append(connection)
            except (OSError, asyncio.IncompleteReadError):
                status, retry_after_s = NOT_READY, 1
            since_s = loop.time() - began - due_s
            refused += status == FULL
            if status == OK or since_s + retry_after_s > PATIENT.patience_s:
                return Outcome(due_s, status, since_s, attempts, refused)
            await asyncio.sleep(retry_after_s)

    outcomes = await asyncio.gather(*map(request, asks, times.tolist()))
    for connection in free:
        connection.close()
    return list(outcomes)


def _post(picture: Picture) -> Ask:
    return lambda connection: connection.post("/txt2img", picture.body)


def _get(picture: Picture) -> Ask:
    fields = {"prompt": picture.prompt, "seed": picture.seed, "width": SIDE, "height": SIDE}
    return lambda connection: connection.get(f"/txt2img?{urlencode(fields)}")


async def _measure() -> tuple[Device, float, list[Seen]]:
    """Return a request alone, the seconds of a restart, and what clients saw."""
    found = []
    async with processes() as (services, proxy):
        device, loop = await alone(proxy.port), asyncio.get_running_loop()
        times = _zone_times()
        asks = [_post(picture) for picture in Supply().take(len(times), SIDE, Prompts.FRESH)]
        victim, killed = services[0], services[0].pid
        restart = loop.create_future()

        def kill() -> None:
            os.kill(killed, signal.SIGKILL)
            restart.set_result(asyncio.ensure_future(_seconds(victim.until_replaced(killed))))

        found.append(seen(_ZONE, await _load(proxy.port, asks, times, kill), at_s=_AT_S))
        restart_s = await (await restart)
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            nginx = Nginx(folder, proxy.port)
            stack.callback(nginx.stop)
            times, urls = _cached_times()
            pictures = Supply().take(_URLS, SIDE, Prompts.FRESH)
            await _load(nginx.port, [_get(pictures[url]) for url in range(_URLS)], _warm_times())

            def empty() -> None:
                for entry in (folder / "cache").rglob("*"):
                    if entry.is_file():
                        entry.unlink(missing_ok=True)

            asks = [_get(pictures[url]) for url in urls.tolist()]
            found.append(seen(_CACHE, await _load(nginx.port, asks, times, empty), at_s=_AT_S))
    return device, restart_s, found


async def _seconds(wait: Coroutine[Any, Any, None]) -> float:
    began = asyncio.get_running_loop().time()
    await wait
    return asyncio.get_running_loop().time() - began


_ZONE = f"one of {PROCESSES} processes is killed and started again"
_CACHE = "the cache loses all pictures"


def _zone_times() -> npt.NDArray[np.float64]:
    return arrivals(steady(_BUSY * PROCESSES / SECONDS), lasts_s=_LASTS_S, seed=3)


def _warm_times() -> npt.NDArray[np.float64]:
    return np.arange(_URLS) * SECONDS / PROCESSES * 1.1


def _cached_times() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    times = arrivals(steady(_CACHED_LOAD * PROCESSES / SECONDS), lasts_s=_LASTS_S, seed=4)
    return times, draw(zipf(_URLS, exponent=_EXPONENT), len(times), seed=4)


def _simulate(device: Device, restart_s: float) -> Iterator[Seen]:
    fleet = Fleet(
        [device.kind], PROCESSES, client=PATIENT, answer_s=device.answer_s, starts=Starts(process_s=restart_s)
    )
    fleet.offer(_zone_times())
    after(fleet.env, _AT_S, lambda: fleet.kill(fleet.ready[:1]))
    fleet.run()
    yield seen(_ZONE, fleet.outcomes, at_s=_AT_S)
    fleet = Fleet([device.kind], PROCESSES, client=PATIENT, answer_s=device.answer_s)
    cache = fleet.cache = Cache(lambda: fleet.env.now, max_bytes=_URLS, answer_bytes=1, ttl_s=3600, stale_on_error=True)
    for url in range(_URLS):
        cache.get(url, lambda *_: None, lambda answered: answered(OK, 0))
    times, urls = _cached_times()
    fleet.offer(times, urls=urls)
    after(fleet.env, _AT_S, cache.clear)
    fleet.run()
    yield seen(_CACHE, fleet.outcomes, at_s=_AT_S)


def table() -> Iterator[str]:
    """Measure, simulate, and yield the lines of the comparison."""
    device, restart_s, found = asyncio.run(_measure())
    yield f"A restart took {restart_s:.1f} s.\n"
    for real, ours in zip(found, _simulate(device, restart_s), strict=True):
        yield row(real, what=f"{real.name}: real processes")
        yield row(ours, what=f"{ours.name}: simulation")
