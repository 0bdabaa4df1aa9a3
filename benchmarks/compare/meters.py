"""Measures process trees: CPU time, memory, and the start of the bare pipeline."""

import os
import threading
import time
from collections.abc import Mapping
from typing import Self

from benchmarks.compare.preparation import run
from benchmarks.compare.results import Start
from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import interpreter


class Stopwatch:
    """Measures CPU time and wall-clock time of a process tree, and the CPU time of all other processes meanwhile."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.cpu_s = self.wall_s = self.others_cpu_s = 0.0

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s, self.wall_s, own_s, busy_s = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        self.others_cpu_s = max(0.0, busy_s - own_s - self.cpu_s)

    def _read(self) -> tuple[float, float, float, float]:
        return process_tree.cpu_seconds(self._pid), time.perf_counter(), time.process_time(), machine.busy_s()


class PeakMemory:
    """Samples the memory of a process tree four times a second, and keeps the maximum."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, process_tree.pss_bytes(self._pid))


def start_bare(env: Mapping[str, str]) -> Start:
    """Run the bare pipeline: the shortest possible start."""
    before, began = _children_cpu_s(), time.perf_counter()
    run([str(interpreter()), "-m", "benchmarks.compare.bare_pipeline"], env)
    took = time.perf_counter() - began
    return Start(server="bare", ready_s=took, first_picture_s=took, cpu_s=_children_cpu_s() - before)


def _children_cpu_s() -> float:
    """Return the CPU time of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system
