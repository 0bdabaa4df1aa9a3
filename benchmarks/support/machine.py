"""The machine of the measurement: its description, and its CPU time."""

import os
import platform
from pathlib import Path


def describe() -> dict[str, str]:
    """Return the machine's CPU, cores, memory and kernel."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    kilobytes = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "CPU": cpu or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{kilobytes / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def busy_s() -> float:
    """Return the CPU time of all processes since the boot, and the time that the host withheld (steal)."""
    fields = [int(field) for field in _lines("/proc/stat")[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()
