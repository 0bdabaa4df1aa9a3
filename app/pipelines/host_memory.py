"""The memory of the host: what this process may still use, in a container too, and what becomes of freed memory."""

import ctypes
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMINFO, _CGROUPS, _STATM = "proc/meminfo", "proc/self/cgroup", "proc/self/statm"
_V2, _V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"

_RECLAIMABLE = re.compile(r"^(?:total_)?(?:in)?active_file (\d+)$", re.MULTILINE)
"""Cached files in memory.stat. In version 1, the counters with `total_` are last and include the child cgroups."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
"""Parameters of mallopt(3); the numbers are malloc.h's."""


def share_heap() -> None:
    """Have the threads that start from now on use the process's first heap. For `keep_freed_memory`.

    A thread's own heap of glibc has no blocks of more than 64 MiB: it always maps them, and never keeps them.
    """
    if libc := _glibc():
        libc.mallopt(_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Configure glibc to keep freed memory for the next picture. For a CPU, when its weights are loaded.

    By default glibc returns each large block to the system. The next picture's blocks are then zeroed and faulted in
    page by page: a sixth of the CPU time of the VAE at 512x512. The kept memory is bounded by the largest call's peak.
    Other C libraries lack mallopt, and keep theirs.
    """
    # Older versions of glibc accept at most 32 MiB.
    if (libc := _glibc()) and (libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 32 << 20)):
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Have glibc return freed memory to the system. It keeps blocks of less than 32 MiB otherwise."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Return the bytes that this process can still use without being killed, and the most that it could ever use.

    The host, each memory cgroup of the process (a container's limit, systemd's `MemoryMax`) and the limit of its
    address space (`ulimit -v`) bound both; the least counts. Cached files count as free, swap does not. `root` is the
    folder of the host's files.
    """
    bounds = [_host(root), *_cgroups(root), *_address_space(root)]
    return max(0, min(free for free, _ in bounds)), min(total for _, total in bounds)


def _host(root: Path) -> tuple[int, int]:
    memory = (root / _MEMINFO).read_text(encoding="ascii")  # sysconf counts cached files as used
    kib = dict(re.findall(r"^(\w+): +(\d+) kB$", memory, re.MULTILINE))
    return int(kib["MemAvailable"]) << 10, int(kib["MemTotal"]) << 10


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the process's cgroup and of its parents: a parent's limit holds too.

    A container may see its own cgroup as the root of the mount, and a path that does not exist there.
    """
    for line in (root / _CGROUPS).read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mount, files = root / _V1, ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            mount, files = root / _V2, ("memory.max", "memory.current")
        else:
            continue
        within = PurePosixPath(path).relative_to("/")
        for folder in (mount / within, *(mount / parent for parent in within.parents)):
            if all((folder / name).is_file() for name in files):
                limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in files)
                if limit != "max":
                    stat = (folder / "memory.stat").read_text(encoding="ascii")
                    cached = sum(map(int, _RECLAIMABLE.findall(stat)[-2:]))
                    yield int(limit) - (int(used) - cached), int(limit)


def _address_space(root: Path) -> Iterator[tuple[int, int]]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = int((root / _STATM).read_text(encoding="ascii").split()[0])
        yield limit - pages * resource.getpagesize(), limit
