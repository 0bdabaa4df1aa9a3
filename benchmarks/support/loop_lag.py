"""Measures how long an event loop is blocked, on the loop itself.

A task sleeps for 5 ms again and again. The lag is the time by which a sleep is too long; no other task runs on the loop
in that time. The net figure leaves out the time in which the loop's thread was ready to run and the kernel ran another
thread, because that time is the machine's: the second field of /proc/self/task/TID/schedstat.
"""

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

_SLEEP_S = 0.005


class LagRecorder:
    """Records lags. At SIGUSR1 the recorder writes them to a file and clears them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._raw_s: list[float] = []
        self._net_s: list[float] = []
        self._wrote = False

    async def run(self) -> None:
        """Measure until cancelled."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._write)
        schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        try:
            while True:
                waited, began = _waited_s(schedstat), time.perf_counter()
                await asyncio.sleep(_SLEEP_S)
                lag = time.perf_counter() - began - _SLEEP_S
                if self._wrote:  # writing the file caused this lag
                    self._wrote = False
                    continue
                self._raw_s.append(lag)
                self._net_s.append(lag - (_waited_s(schedstat) - waited))
        finally:
            os.close(schedstat)

    def _write(self) -> None:
        written = self._file.with_suffix(".part")
        written.write_text(json.dumps({"raw_s": self._raw_s, "net_s": self._net_s}))
        written.replace(self._file)
        self._raw_s, self._net_s = [], []
        self._wrote = True


def _waited_s(schedstat: int) -> float:
    return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9


def read_lags(pid: int, file: Path) -> dict[str, list[float]]:
    """Make the process write its lags since the last call, and return them.

    Raises:
        TimeoutError: The process does not write the file within 10 s.
    """
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no lags from process {pid}")
        time.sleep(0.02)
    lags: dict[str, list[float]] = json.loads(file.read_text())
    return lags
