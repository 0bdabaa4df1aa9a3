"""A clock that tests move, so that seconds pass exactly as a test says, on a busy machine too."""

import asyncio
import time

import pytest


class Clock:
    """The time that measurements and deadlines see. It stands still until somebody sleeps on it."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass, at once. Only one thread at a time may call this."""
        self._passed_s += seconds

    def monotonic(self) -> float:
        return 1000 + self._passed_s

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `app.inference` measure by this clock, and shift the running event loop's time by it.

        The loop's time goes on between the shifts: let deadlines be many seconds away from what a test does.
        """
        for module in ("admission", "batching_lock", "cost", "device_guard", "engine", "registry", "start_progress"):
            monkeypatch.setattr(f"app.inference.{module}.time", self)
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + self._passed_s)
