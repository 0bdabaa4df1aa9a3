"""The memory of the process, from the files of a host that has as much as a test says."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.pipelines.host_memory import memory_bytes

GIB = 1 << 30
NO_LIMIT = 9223372036854771712
"""The limit that version 1 shows for a cgroup without a limit."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with 12 of 16 GiB available, without cgroups."""
    kib = "MemTotal: {} kB\nMemFree: 5 kB\nMemAvailable: {} kB\nSwapFree: {} kB\n"
    write(tmp_path / "proc/meminfo", kib.format(16 << 20, 12 << 20, 8 << 20))
    write(tmp_path / "proc/self/cgroup", "")
    return tmp_path


def limit_v2(host: Path, path: str, limit: object, used: int, *, inactive: int = 0, active: int = 0) -> None:
    folder = host / "sys/fs/cgroup" / path
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 7\nfile 99\ninactive_file {inactive}\nactive_file {active}\nshmem 3\n")


def test_without_limits_it_is_what_the_host_has_available(host: Path) -> None:
    assert memory_bytes(host) == (12 * GIB, 16 * GIB)


def test_a_container_has_the_room_of_its_own_limit_where_cached_files_are_free(host: Path) -> None:
    write(host / "proc/self/cgroup", "0::/\n")
    limit_v2(host, "", 8 * GIB, 5 * GIB, inactive=2 * GIB, active=GIB)
    assert memory_bytes(host) == (6 * GIB, 8 * GIB)


def test_a_parent_s_limit_holds_too(host: Path) -> None:
    write(host / "proc/self/cgroup", "0::/system.slice/turbo.service\n")
    limit_v2(host, "system.slice/turbo.service", "max", 2 * GIB)
    limit_v2(host, "system.slice", 4 * GIB, 3 * GIB)
    assert memory_bytes(host) == (GIB, 4 * GIB)


@pytest.mark.parametrize("path", ["docker/0123", ""])
def test_version_1_of_cgroups_limits_alike_and_its_path_may_be_the_host_s(host: Path, path: str) -> None:
    write(host / "proc/self/cgroup", "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n0::/\n")
    mount = host / "sys/fs/cgroup/memory"
    for folder, limit in {mount: NO_LIMIT, mount / path: 8 * GIB}.items():
        write(folder / "memory.limit_in_bytes", f"{limit}\n")
        write(folder / "memory.usage_in_bytes", f"{3 * GIB}\n")
        own = f"inactive_file {9 * GIB}\nactive_file {9 * GIB}\n"  # counts without children
        write(folder / "memory.stat", f"{own}total_inactive_file {GIB}\ntotal_active_file 0\n")
    assert memory_bytes(host) == (6 * GIB, 8 * GIB)


def test_a_limit_that_is_used_up_leaves_nothing(host: Path) -> None:
    write(host / "proc/self/cgroup", "0::/\n")
    limit_v2(host, "", GIB, 2 * GIB)
    assert memory_bytes(host) == (0, GIB)


def test_a_limit_of_the_address_space_counts_less_what_is_mapped() -> None:
    code = "from app.pipelines.host_memory import memory_bytes; print(*memory_bytes())"
    command = ["prlimit", f"--as={GIB}", sys.executable, "-c", code]
    free, total = map(int, subprocess.check_output(command, text=True).split())
    assert total == GIB
    assert 0 < free < GIB
