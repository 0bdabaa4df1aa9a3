"""How long an event loop is kept from its work, measured on the loop itself.

A task sleeps for 5 ms over and over; what it oversleeps is time in which nobody else on the loop was served either. The
net figure leaves out what the loop's thread spent ready to run while the kernel ran something else: on a machine with
few cores that is the machine's doing. It is the second field of /proc/self/task/TID/schedstat.
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
    """Records lags from one SIGUSR1 to the next, at which it writes them to a file and starts anew."""

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
                if self._wrote:  # that was this recorder's own stall
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
    """Have the process write its lags since the last time to its file, and read them.

    Raises:
        TimeoutError: Nothing is written.
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
