"""Starts with too little memory.

The limit is that of the address space, `ulimit -v`, because every user may set it. A start takes the same way when a
container's limit or the machine is too small (`tests/pipelines/test_host_memory.py`).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.server.process import START_FAILED


def start(model: Path, limit_bytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["prlimit", f"--as={limit_bytes}", sys.executable, "-m", "app", *command],
        env={**os.environ, "TURBO_MODEL": str(model), "TURBO_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def reason(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a failed start says why."""
    assert ended.returncode == START_FAILED, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = re.findall(r'^\{"event": "cannot start: (.*?)", "level": "critical"', ended.stderr, re.MULTILINE)
    assert "raise the memory limit" in line
    return str(line)


def test_a_start_without_memory_for_the_weights_says_what_they_take_before_they_are_read(
    model: Path, weights_bytes: int
) -> None:
    ended = start(model, 9 << 30)
    assert f"take {weights_bytes / 1e9:.1f} GB of memory" in reason(ended)


def test_a_start_without_memory_to_map_the_largest_file_names_it(model: Path) -> None:
    assert "unet/diffusion_pytorch_model.fp16.safetensors does not fit into memory" in reason(start(model, 4 << 30))


@pytest.mark.parametrize("limit_gib", [12.0, 13.5])
def test_a_limit_that_is_reached_while_loading_or_warming_up_ends_the_start_in_one_line(
    model: Path, limit_gib: float
) -> None:
    line = reason(start(model, int(limit_gib * 2**30)))
    print(line)  # noqa: T201
    assert "and a start takes" not in line, "the check before loading passed"


def test_the_doctor_says_that_the_memory_is_too_small(model: Path) -> None:
    ended = start(model, 9 << 30, "doctor")
    assert ended.returncode == 1
    assert re.search(r"^FAIL +load +The weights in .* take [0-9.]+ GB of memory", ended.stdout, re.MULTILINE)
