"""Processes that have imported the libraries already: importing torch and diffusers is most of what a start takes.

A process that has imported them, and has no threads of Python, forks for each order. The new process belongs to the
tests' process, which waits for it and reads its exit code as if it had started it. Linux only.

Run as a script, this module is the process that forks. Its arguments are the modules to import.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_LIBRARIES = ("app.pipelines.sdxl_turbo", "app.main", "app.server.process")
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans become this process's children


class WarmProcess:
    """A process that runs Python code; has what the tests need of subprocess.Popen."""

    def __init__(self, code: str, environment: Mapping[str, str], *, stderr: Path, on_npu: bool = False) -> None:
        """Run `code` in a new process. `on_npu`: the simulated NPU is installed before the libraries are imported."""
        stderr.write_bytes(b"")
        forking = _start_forking(*(("tests.npu.simulator:install",) if on_npu else ()), *_LIBRARIES)
        assert forking.stdin
        assert forking.stdout
        order = {"code": code, "environment": dict(environment), "stderr": str(stderr), "folder": str(Path.cwd())}
        forking.stdin.write(json.dumps(order) + "\n")
        forking.stdin.flush()
        self.pid = int(forking.stdout.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


@cache
def _start_forking(*modules: str) -> "subprocess.Popen[str]":
    """Start the process that forks. It ends with the tests, as its input does."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def _fork_for_orders() -> dict[str, Any]:
    """Fork for each line of stdin, and return the order in the new process."""
    gc.freeze()  # or the new processes would write to, and so copy, all of this one's memory
    reading, writing = os.pipe()
    for line in sys.stdin:
        # The process between ends at once, so that the new one becomes the tests' before they know it.
        if between := os.fork():
            os.waitpid(between, 0)
            os.write(1, os.read(reading, 32))
            continue
        if pid := os.fork():
            os.write(writing, f"{pid}\n".encode())
            os._exit(0)
        order: dict[str, Any] = json.loads(line)
        return order
    sys.exit()


def _become(order: Mapping[str, Any]) -> None:
    """Take over what a new process would be given."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    log = os.open(order["stderr"], os.O_WRONLY | os.O_APPEND)
    for new, old in ((nowhere, 0), (nowhere, 1), (log, 2)):
        os.dup2(new, old)
    sys.argv[:] = ["-c"]
    sys.path.insert(0, "")


def _serve() -> NoReturn:
    for module in sys.argv[1:]:
        name, _, function = module.partition(":")
        imported = importlib.import_module(name)
        if function:
            getattr(imported, function)()
    order = _fork_for_orders()
    _become(order)
    exec(compile(order["code"], "<warm>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as python -c
    sys.exit()


if __name__ == "__main__":
    _serve()
