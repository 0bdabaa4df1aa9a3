"""Measures the cost of Ray Serve: the service as a process by itself, and as one replica behind Ray's proxy.

    .venv/bin/python -m benchmarks.ray_cost

Both use the fake pipeline. Its pictures take no time, so the figures show all other costs. Both run all the time, and
rounds alternate between them. The table is in Markdown.
"""

import asyncio
import io
import itertools
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import Contestant, RunningServer, interpreter, start
from benchmarks.support.http_client import Connection

_ROUNDS = 5
_CLIENTS = (1, 8)
_REQUESTS = 200
_IDLE_S = 10
_OK = 200
_BOUNDARY = "part"

_SETTINGS = {"TURBO_MODEL": "fake", "TURBO_MAX_QUEUE": "64", "TURBO_LOG_LEVEL": "warning"}
_WITHOUT, _WITH = "the process by itself", "behind Ray Serve"
_CONTESTANTS = {
    _WITHOUT: Contestant(
        key="process", title=_WITHOUT, command=("-m", "app", "serve"), path="/txt2img", settings=_SETTINGS
    ),
    _WITH: Contestant(
        key="ray",
        title=_WITH,
        command=("-m", "benchmarks.ray_cost.service"),
        path="/txt2img",
        settings={
            **_SETTINGS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(),  # without it, Ray writes a token to the user's home
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class _Request:
    """One HTTP request and its title in the table."""

    title: str
    path: str
    content_type: str
    body: bytes


@dataclass(slots=True)
class _Figures:
    """The median latency, requests per second and CPU time per request of each round."""

    latency_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def _requests() -> list[_Request]:
    """Return a small text-to-image request, and an image-to-image request with noise, which hardly compresses."""
    text = b'{"prompt": "a red circle on a blue background", "seed": 1, "width": 512, "height": 512}'
    noise = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    parts = [
        b'Content-Disposition: form-data; name="prompt"\r\n\r\na house',
        b'Content-Disposition: form-data; name="image"; filename="noise.png"\r\n\r\n' + file.getvalue(),
    ]
    form = b"".join(b"--%b\r\n%b\r\n" % (_BOUNDARY.encode(), part) for part in parts)
    form += b"--%b--\r\n" % _BOUNDARY.encode()
    return [
        _Request("text to image, 3 kB back", "/txt2img", "application/json", text),
        _Request("image to image, 0.6 MB each way", "/img2img", f"multipart/form-data; boundary={_BOUNDARY}", form),
    ]


async def _load(port: int, request: _Request, *, clients: int) -> list[float]:
    """Send the requests from `clients` clients without pauses; return the latencies in seconds."""
    left = iter(range(_REQUESTS))

    async def client() -> list[float]:
        latencies = []
        async with Connection(port) as connection:
            for _ in left:
                began = time.perf_counter()
                answer = await connection.post(request.path, request.body, content_type=request.content_type)
                latencies.append(time.perf_counter() - began)
                assert answer.status == _OK, answer
        return latencies

    return list(itertools.chain.from_iterable(await asyncio.gather(*(client() for _ in range(clients)))))


def _measure(server: RunningServer, request: _Request, figures: _Figures, *, clients: int) -> None:
    cpu, began = process_tree.cpu_seconds(server.pid), time.perf_counter()
    latencies = asyncio.run(_load(server.port, request, clients=clients))
    figures.per_s.append(_REQUESTS / (time.perf_counter() - began))
    figures.cpu_s.append((process_tree.cpu_seconds(server.pid) - cpu) / _REQUESTS)
    figures.latency_s.append(statistics.median(latencies))


def main() -> None:
    """Measure both, and print the table."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as logs:
        os.environ["RAY_TMPDIR"] = logs
        running: dict[str, RunningServer] = {}
        try:
            for title, contestant in _CONTESTANTS.items():
                server = start(contestant, interpreter(), Path(os.devnull), Path(logs))
                assert isinstance(server, RunningServer)
                running[title] = server
            rows = [*_per_request(running), *_standing(running)]
        finally:
            for server in running.values():
                server.stop()
    print("; ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print()
    print(f"| | {_WITHOUT} | {_WITH} |")
    print("| --- | ---: | ---: |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _per_request(running: dict[str, RunningServer]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for request, clients in itertools.product(_requests(), _CLIENTS):
        figures = {title: _Figures() for title in running}
        for server in running.values():
            asyncio.run(_load(server.port, request, clients=clients))  # warm-up, not counted
        for _ in range(_ROUNDS):
            for title, server in running.items():
                _measure(server, request, figures[title], clients=clients)
        what = f"{request.title}; {clients} client{'s' * (clients > 1)}"
        values = list(figures.values())
        rows += [
            (f"{what}: median latency", *(f"{statistics.median(one.latency_s) * 1000:.1f} ms" for one in values)),
            (f"{what}: requests a second", *(f"{statistics.median(one.per_s):.0f}" for one in values)),
            (f"{what}: CPU time a request", *(f"{statistics.median(one.cpu_s) * 1000:.1f} ms" for one in values)),
        ]
    return rows


def _standing(running: dict[str, RunningServer]) -> list[Sequence[str]]:
    """Return the cost without requests: processes, memory and CPU."""
    pids = [server.pid for server in running.values()]
    before = [process_tree.cpu_seconds(pid) for pid in pids]
    time.sleep(_IDLE_S)
    idle = [(process_tree.cpu_seconds(pid) - cpu) / _IDLE_S for pid, cpu in zip(pids, before, strict=True)]
    return [
        ("processes", *(str(len(process_tree.members(pid))) for pid in pids)),
        ("memory of all processes (PSS)", *(f"{process_tree.pss_bytes(pid) / 2**20:.0f} MiB" for pid in pids)),
        ("share of a core when idle", *(f"{share:.1%}" for share in idle)),
    ]


if __name__ == "__main__":
    main()
