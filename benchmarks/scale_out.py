"""Measures one, two and three processes of the service with the fake pipeline, behind deploy/haproxy's HAProxy.

    .venv/bin/python -m benchmarks.scale_out [--seconds 0.25] [--pictures 48] [--rounds 3]

benchmarks/README.md explains the measurements. Exit code 1: three processes make less than 2.8 times one.
"""

import argparse
import asyncio
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from app.modes.txt2img import Txt2ImgParams
from app.pipelines.fake import FakePipeline
from benchmarks.compare.results import quantile
from benchmarks.soak.service import Service, until_ready
from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import ROOT, environment, launch
from benchmarks.support.http_client import Connection
from benchmarks.support.load import Outcome, closed_loop
from benchmarks.support.pictures import Picture, Prompts, Supply
from benchmarks.support.ports import free_port

_CONFIG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
_LOG = ROOT / "build" / "bench" / "scale-out" / "haproxy.log"
PROCESSES = 3
_CLIENTS = 8
"""Clients for each process."""

_SIDE = 512
_PROBES = 400
_PATIENCE_S = 10
_LEAST = 2.8


@dataclass(frozen=True, slots=True)
class _Round:
    """One round with a number of processes."""

    per_second: float
    latencies_s: Sequence[float]
    service_cpu_s: float
    proxy_cpu_s: float


class Haproxy:
    """HAProxy with the shipped configuration. Only its ports and its socket are changed."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._socket = folder / "admin.sock"
        text = _CONFIG.read_text(encoding="utf-8")
        for number, port in enumerate(ports):
            text = text.replace(f"127.0.0.1:{8000 + number}\n", f"127.0.0.1:{port}\n")
        text = text.replace(":8080", f":{self.port}").replace(":8404", f":{free_port()}")
        text = text.replace("abns@", f"abns@{self.port}-").replace("/run/haproxy/admin.sock", str(self._socket))
        (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
        program = shutil.which("haproxy") or sys.exit("haproxy is not installed.")
        self._process = launch([program, "-db", "-f", str(folder / "haproxy.cfg")], environment(Path("fake"), {}), _LOG)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def use(self, processes: int) -> None:
        """Make HAProxy send requests to the first `processes` processes only."""
        for number in range(PROCESSES):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            state = "ready" if number < processes else "maint"
            writer.write(f"set server processes/{number} state {state}\n".encode())
            if said := (await reader.read()).strip():
                raise RuntimeError(said.decode())
            writer.close()

    def stop(self) -> None:
        process_tree.end(self.pid)
        self._process.wait()


@contextlib.asynccontextmanager
async def behind_haproxy(settings: Mapping[str, str]) -> AsyncIterator[tuple[list[Service], Haproxy]]:
    """Run the service's processes with these settings, and HAProxy in front of them, until the context ends."""
    services = [Service(settings) for _ in range(PROCESSES)]
    async with contextlib.AsyncExitStack() as stack:
        for service in services:
            await stack.enter_async_context(service.run())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxy = Haproxy(folder, [service.port for service in services])
        stack.callback(proxy.stop)
        await until_ready(proxy.port, within_s=_PATIENCE_S, log=_LOG)
        yield services, proxy


async def _measure(seconds: float, pictures: int, rounds: int) -> tuple[dict[int, list[_Round]], list[float]]:
    settings = {"TURBO_MODEL": f"fake:{seconds}", "TURBO_BATCHING": "off", "TURBO_WARM_UP_SIZES": "64x64"}
    found: dict[int, list[_Round]] = {count: [] for count in range(1, PROCESSES + 1)}
    supply = Supply()
    async with behind_haproxy(settings) as (services, proxy):
        for number in range(rounds):
            for count, rounds_of_it in found.items():
                print(f"round {number + 1} of {rounds}, processes: {count}", file=sys.stderr, flush=True)
                await proxy.use(count)
                asked = supply.take(count * pictures, _SIDE, Prompts.FRESH)
                rounds_of_it.append(await _round(asked, proxy, services[:count]))
        await proxy.use(1)
        added_s = await _added_s(services[0].port, proxy.port)
    return found, added_s


async def _round(asked: Sequence[Picture], proxy: Haproxy, services: Sequence[Service]) -> _Round:
    service_cpu_s = sum(process_tree.cpu_seconds(service.pid) for service in services)
    proxy_cpu_s, began = process_tree.cpu_seconds(proxy.pid), time.perf_counter()
    outcomes = await closed_loop(proxy.port, "/txt2img", asked, clients=_CLIENTS * len(services))
    took_s = time.perf_counter() - began
    service_cpu_s = sum(process_tree.cpu_seconds(service.pid) for service in services) - service_cpu_s
    proxy_cpu_s = process_tree.cpu_seconds(proxy.pid) - proxy_cpu_s
    if wrong := [outcome for outcome in outcomes if not _is_right(outcome)]:
        sys.exit(f"{len(wrong)} answers are not the requested picture: {wrong[0].status} {wrong[0].body[:300]!r}")
    return _Round(len(outcomes) / took_s, [outcome.latency_s for outcome in outcomes], service_cpu_s, proxy_cpu_s)


def _is_right(outcome: Outcome) -> bool:
    if outcome.status != 200:  # noqa: PLR2004 - HTTP's own
        return False
    picture = outcome.picture
    params = Txt2ImgParams(
        prompt=picture.prompt, seed=picture.seed, num_inference_steps=1, width=picture.side, height=picture.side
    )
    (painted,) = FakePipeline()([params])
    return np.array_equal(np.asarray(Image.open(io.BytesIO(outcome.body))), painted.pixels)


async def _added_s(direct_port: int, proxy_port: int) -> list[float]:
    """Send health checks alternately direct and through HAProxy; return how much slower each proxied one is."""
    added_s = []
    async with Connection(direct_port) as direct, Connection(proxy_port) as proxied:
        for _ in range(_PROBES):
            took_s = []
            for connection in (direct, proxied):
                began = time.perf_counter()
                await connection.get("/healthz/live")
                took_s.append(time.perf_counter() - began)
            added_s.append(took_s[1] - took_s[0])
    return added_s


def _table(found: dict[int, list[_Round]]) -> Iterator[str]:
    yield "| processes | pictures/s | of one | p50 | p95 | CPU of the services | of HAProxy |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for count, rounds in found.items():
        latencies_s = [latency_s for one in rounds for latency_s in one.latencies_s]
        pictures = len(latencies_s)
        service_ms, proxy_ms = (
            1000 * sum(cpu_s) / pictures
            for cpu_s in ([one.service_cpu_s for one in rounds], [one.proxy_cpu_s for one in rounds])
        )
        yield (
            f"| {count} | {statistics.median(one.per_second for one in rounds):.2f} | {_ratio(found, count):.2f} "
            f"| {quantile(latencies_s, 0.5):.2f} s | {quantile(latencies_s, 0.95):.2f} s "
            f"| {service_ms:.1f} ms | {proxy_ms:.2f} ms |"
        )


def _ratio(found: dict[int, list[_Round]], count: int) -> float:
    """Return the median of each round's ratio to one process."""
    return statistics.median(many.per_second / one.per_second for one, many in zip(found[1], found[count], strict=True))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.25, help="time of one picture (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=48, help="for each process and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    options = parser.parse_args()
    busy_s, own_s, began = machine.busy_s(), time.process_time(), time.perf_counter()
    found, added_s = asyncio.run(_measure(options.seconds, options.pictures, options.rounds))
    took_s = time.perf_counter() - began
    busy, own = (machine.busy_s() - busy_s) / took_s, (time.process_time() - own_s) / took_s
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"A picture takes {options.seconds:g} s; {_CLIENTS} clients for each process.")
    print(f"All processes on the machine used {busy:.0%} of a core, the load generator {own:.0%}.\n")
    print("\n".join(_table(found)))
    print(
        f"\nHAProxy adds {1000 * quantile(added_s, 0.5):.2f} ms (median), "
        f"{1000 * quantile(added_s, 0.95):.2f} ms (p95), for single requests."
    )
    return 0 if _ratio(found, PROCESSES) >= _LEAST else 1


if __name__ == "__main__":
    sys.exit(_main())
