"""Measures what a picture by URL costs: from deploy/cache's nginx, confirmed by the service, and drawn.

    .venv/bin/python -m benchmarks.cache [--pictures 20] [--answers 20000]

The demo model draws, because the fake's pictures are much smaller than others. benchmarks/README.md explains the
measurements.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.soak.service import Service
from benchmarks.support import machine, process_tree
from benchmarks.support.http_client import Answer, Connection
from benchmarks.support.nginx import Nginx

_CLIENTS = 4


@dataclass(frozen=True, slots=True)
class _Cost:
    """The cost of one kind of answer: CPU milliseconds and bytes for each."""

    what: str
    service_ms: float
    nginx_ms: float
    body_bytes: float
    per_second: float


def _path(seed: int) -> str:
    return "/txt2img?" + urlencode({"prompt": "a red circle on a blue background", "seed": seed})


async def _measure(pictures: int, answers: int) -> Sequence[_Cost]:
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(Service({"TURBO_MODEL": "demo"}).run())
        nginx = Nginx(Path(stack.enter_context(tempfile.TemporaryDirectory())), service.port)
        stack.callback(nginx.stop)

        async def cost(what: str, port: int, status: int, paths: Sequence[str], tags: Mapping[str, str]) -> _Cost:
            """Ask for the paths, each with its tag if there is one."""

            async def ask(connection: Connection, path: str) -> Answer:
                return await connection.get(path, {"If-None-Match": tags[path]} if path in tags else None)

            before = [process_tree.cpu_seconds(pid) for pid in (service.pid, nginx.pid)]
            began = time.perf_counter()
            got = await _by_clients(port, paths, ask)
            took_s = time.perf_counter() - began
            spent = [
                process_tree.cpu_seconds(pid) - earlier
                for pid, earlier in zip((service.pid, nginx.pid), before, strict=True)
            ]
            if wrong := [answer for answer in got if answer.status != status]:
                raise RuntimeError(f"{len(wrong)} answers are not {status}: {wrong[0]}")
            service_ms, nginx_ms = (1000 * seconds / len(paths) for seconds in spent)
            return _Cost(what, service_ms, nginx_ms, statistics.mean(len(one.body) for one in got), len(paths) / took_s)

        new = [_path(seed) for seed in range(pictures)]
        again = (new * (answers // pictures + 1))[:answers]
        costs = [await cost("drawn, and kept by nginx", nginx.port, 200, new, {})]
        costs.append(await cost("from nginx", nginx.port, 200, again, {}))
        async with Connection(nginx.port) as connection:
            tags = {path: (await connection.get(path)).headers["etag"] for path in new}
        costs.append(await cost("304 by nginx", nginx.port, 304, again, tags))
        costs.append(await cost("304 by the service", service.port, 304, again, tags))
        return costs


async def _by_clients(
    port: int, paths: Sequence[str], ask: Callable[[Connection, str], Awaitable[Answer]]
) -> list[Answer]:
    waiting = iter(paths)

    async def client() -> list[Answer]:
        async with Connection(port) as connection:
            return [await ask(connection, path) for path in waiting]

    return [answer for some in await asyncio.gather(*(client() for _ in range(_CLIENTS))) for answer in some]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20, help="different URLs (default: %(default)s)")
    parser.add_argument("--answers", type=int, default=20_000, help="for each kind of answer (default: %(default)s)")
    options = parser.parse_args()
    costs = asyncio.run(_measure(options.pictures, options.answers))
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print("\n| answer | CPU of the service | CPU of nginx | body | answers/s |\n| --- | --- | --- | --- | --- |")
    for one in costs:
        print(
            f"| {one.what} | {one.service_ms:.2f} ms | {one.nginx_ms:.3f} ms | {one.body_bytes / 1000:.0f} kB "
            f"| {one.per_second:.0f} |"
        )


if __name__ == "__main__":
    _main()
