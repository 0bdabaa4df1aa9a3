"""A process and all its descendants: their CPU time and memory, read from /proc."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def members(root: int) -> list[int]:
    """Return the process `root` and its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root] if _stat(root) else []
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Return the tree's CPU time since its start (user and system), with children that have ended."""
    ticks = 0
    for pid in members(root):
        if fields := _stat(pid):
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks * _TICK_S


def pss_bytes(root: int) -> int:
    """Return the tree's proportional set size: memory that processes share is counted once."""
    return _tree_bytes(root, "smaps_rollup", "Pss")


def peak_rss_bytes(root: int) -> int:
    """Return the sum of the largest resident sizes that the tree's processes have had (VmHWM), files included."""
    return _tree_bytes(root, "status", "VmHWM")


def anonymous_bytes(pid: int) -> int:
    """Return the memory that the process has allocated (RssAnon), without pages of files, which processes share."""
    return _field_bytes(pid, "status", "RssAnon")


def _tree_bytes(root: int, file: str, field: str) -> int:
    """Return the sum of a size over the tree, without processes that have ended meanwhile."""
    total = 0
    for pid in members(root):
        with suppress(OSError, StopIteration):
            total += _field_bytes(pid, file, field)
    return total


def _field_bytes(pid: int, file: str, field: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def run_delay_s(pid: int) -> float:
    """Return how long the main thread was ready to run while the kernel ran another thread (schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def end(root: int, *, patience_s: float = 10) -> None:
    """Stop the root with SIGTERM, and kill the processes that are left after `patience_s`."""
    pids = [(pid, _born(pid)) for pid in members(root)]
    with suppress(ProcessLookupError):
        os.kill(root, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(_alive(pid, born) for pid, born in pids):
        time.sleep(0.1)
    for pid, born in pids:
        if _alive(pid, born):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _alive(pid: int, born: str | None) -> bool:
    """Return whether the process is alive. The start time `born` rules out another process with the same number."""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z" and _born(pid) == born


def _born(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat (proc(5)) from the third, the state. The second can contain spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
