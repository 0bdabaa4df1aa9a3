"""The process of a trial, as `tune` holds it: started, asked, closed, and killed if it does not answer."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from app.errors import DeviceOutOfMemoryError, MemoryTooSmallError

_CLOSE_S = 10
"""Seconds that a process has to end after `close`: a killed process may not give an accelerator's memory back."""

_MEMORY_CODES = {DeviceOutOfMemoryError.code, MemoryTooSmallError.code}


class TrialError(Exception):
    """A trial crashed, hung, or reported an error. The text is one line.

    `for_memory` tells whether a lack of memory is the likely cause: then it may work while no other process runs.
    """

    def __init__(self, text: str, *, for_memory: bool = False) -> None:
        super().__init__(text)
        self.for_memory = for_memory


class TrialProcess:
    """A process that speaks the protocol of `app.cli.tuning.trial`. After an error it is dead. All methods block.

    It has a process group of its own: a terminal's Ctrl-C does not reach it, and its own children die with it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, log: Path) -> None:
        self._log = log
        self._messages: queue.Queue[str | None] = queue.Queue()
        self.facts: Mapping[str, Any] = {}
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - the command is this program
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
                start_new_session=True,
            )
        self._stdin = cast("IO[str]", self._process.stdin)
        self._killed = False
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="trial", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_warm(self, *, limit_s: float) -> None:
        """Wait for the first answer, the facts.

        Raises:
            TrialError: The process ended, reported an error, or gave no answer within `limit_s`.
        """
        self.facts = self._answer(limit_s)

    def ask(self, command: str, *, limit_s: float, **arguments: object) -> Any:
        """Send a command and return its answer.

        Raises:
            TrialError: As of `wait_until_warm`.
        """
        with suppress(OSError):  # a process that has ended is found when its answer is read
            self._send({"command": command, **arguments})
        return self._answer(limit_s)

    def close(self) -> None:
        """End the process: with `close`, or by SIGKILL if it takes too long."""
        with suppress(OSError, subprocess.TimeoutExpired):
            if self.alive:
                self._send({"command": "close"})
                self._process.wait(_CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """End the process and its children by SIGKILL."""
        if self._killed:
            return
        self._killed = True
        with suppress(ProcessLookupError, PermissionError):  # all have ended; macOS raises the second for zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver may hold it for ever
            self._process.wait(_CLOSE_S)
        with suppress(OSError):
            self._stdin.close()
        self._reader.join(1)

    def _send(self, request: Mapping[str, object]) -> None:
        self._stdin.write(f"{json.dumps(request)}\n")
        self._stdin.flush()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._messages.put(line)
        self._messages.put(None)

    def _answer(self, limit_s: float) -> Any:
        answer = self._received(limit_s)
        if isinstance(answer, TrialError):
            self.kill()
            raise answer
        return answer

    def _received(self, limit_s: float) -> Any:
        """Return the next answer, or the error that takes its place."""
        try:
            line = self._messages.get(timeout=limit_s)
        except queue.Empty:
            return TrialError(f"no answer within {limit_s:.0f} s")
        if line is None:
            return self._end()
        try:
            message = json.loads(line)
            if "answer" in message:
                return message["answer"]
            error = message["error"]
            return TrialError(" ".join(error["text"].split()), for_memory=error["code"] in _MEMORY_CODES)
        except (ValueError, KeyError, TypeError, AttributeError):
            return TrialError(f"an answer that is not of the protocol: {line.strip()}")

    def _end(self) -> TrialError:
        """Return the error of a process that has ended: its signal or exit code, and the last line of its log."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        code = self._process.returncode
        if code is None:
            how = "the process closed its stdout"
        elif code < 0:
            how = f"ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self.last_line
        # Linux ends processes by SIGKILL if the machine has no memory left.
        return TrialError(f"{how}: {last}" if last else how, for_memory=code == -signal.SIGKILL)

    @property
    def last_line(self) -> str:
        """The last line of the process's stderr that is not empty."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
