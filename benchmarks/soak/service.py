"""The service as an operator runs it: its process, a small supervisor, and samples of its memory."""

import asyncio
import contextlib
import itertools
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from benchmarks.compare.results import quantile
from benchmarks.soak.load import OK
from benchmarks.support import process_tree
from benchmarks.support.contestants import ROOT, environment, interpreter, launch
from benchmarks.support.http_client import Connection
from benchmarks.support.ports import free_port

_LOGS = ROOT / "build" / "bench" / "soak-logs"
_POLL_S = 0.02
_START_LIMIT_S = 180
_MEMORY_WINDOW_S = 10


async def until_ready(port: int, *, within_s: float, log: Path) -> None:
    """Wait until the server on this port is ready.

    Raises:
        TimeoutError: The server is not ready in time; the text names its log.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with Connection(port) as connection:
                if (await connection.get("/healthz/ready")).status == OK:
                    return
        await asyncio.sleep(_POLL_S)
    raise TimeoutError(f"not ready after {within_s} s; see the log {log}")


class Service:
    """`python -m app serve`, with settings in the environment.

    A supervisor restarts the process whenever it ends, as `docker compose` and systemd do.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self._environment = environment(Path(settings["TURBO_MODEL"]), {**settings, "TURBO_PORT": str(self.port)})
        self._starts = itertools.count(1)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["Service"]:
        """Start the service, wait until it is ready, and stop it at the end."""
        self._process = self._launch()
        supervising = asyncio.create_task(self._supervise())
        try:
            await self.until_ready()
            yield self
        finally:
            supervising.cancel()
            await asyncio.to_thread(process_tree.end, self.pid)
            self._process.wait()

    @property
    def pid(self) -> int:
        """The current process."""
        return self._process.pid

    async def until_ready(self) -> None:
        await until_ready(self.port, within_s=_START_LIMIT_S, log=_LOGS)

    async def until_replaced(self, pid: int) -> None:
        """Wait until a new process has replaced `pid` and is ready."""
        while self.pid == pid:  # noqa: ASYNC110 - the supervisor polls at the same interval
            await asyncio.sleep(_POLL_S)
        await self.until_ready()

    def _launch(self) -> "subprocess.Popen[str]":
        log = _LOGS / f"{self.port}-{next(self._starts)}.log"
        return launch([str(interpreter()), "-m", "app", "serve"], self._environment, log)

    async def _supervise(self) -> None:
        while True:
            if self._process.poll() is not None:
                self._process = self._launch()
            await asyncio.sleep(_POLL_S)


class MemoryWatch:
    """Samples the memory that a process has allocated, once a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Sample until cancelled."""
        began = time.perf_counter()
        while True:
            self._samples.append((time.perf_counter() - began, process_tree.anonymous_bytes(self._pid)))
            await asyncio.sleep(1)

    def growth(self, settled_s: float) -> float | None:
        """Return the relative growth from `settled_s` to the end; None if the run was too short."""
        end_s = self._samples[-1][0] - _MEMORY_WINDOW_S
        if end_s < settled_s + _MEMORY_WINDOW_S:
            return None
        before = [size for at_s, size in self._samples if settled_s <= at_s <= settled_s + _MEMORY_WINDOW_S]
        after = [size for at_s, size in self._samples if at_s >= end_s]
        return quantile(after, 0.5) / quantile(before, 0.5) - 1

    def told(self) -> str:
        """Return the memory at the start and after each quarter, as text."""
        quarters = [self._samples[share * (len(self._samples) - 1) // 4] for share in range(5)]
        return ", ".join(f"{size / 2**20:.1f} MiB after {at_s:.0f} s" for at_s, size in quarters)
