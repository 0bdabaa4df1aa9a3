"""The watch: finds calls that hang, and a device that dies while it is idle."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.errors import DeviceLostError, DeviceOutOfMemoryError
from app.inference.batching_lock import BatchingLock
from app.inference.engine import Engine

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LOOKS_PER_LIMIT = 20
"""Checks for a hung call within the hang limit: a hung call is found at most a twentieth too late."""

_TICK_S = 0.1


async def unless_hung(
    work: Coroutine[Any, Any, T], lock: BatchingLock, *, on_tick: Callable[[], None] = lambda: None
) -> T:
    """Wait for a command's work on the device. `on_tick` is called meanwhile.

    Raises:
        DeviceLostError: A call to the device hangs.
    """
    task = asyncio.create_task(work)
    while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
        on_tick()
        if lock.hung:
            raise DeviceLostError(
                f"{_hang(lock)}.",
                remedy="If it may still be loading or compiling, set TURBO_HANG_LIMIT_S higher; else reset the device.",
            )
    return task.result()


@dataclass(frozen=True)
class DeviceWatch:
    """Watches the device from the event loop, and reports its loss to the engine."""

    engine: Engine
    idle_check_s: float = field(kw_only=True)

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._find_hung_calls())
                tasks.create_task(self._check_when_idle())
        except Exception:  # no task awaits the watch, and an unwatched device cannot be trusted
            _log.exception("the watch failed")
            self._lose_device("The device is not watched any more")
            raise

    async def _find_hung_calls(self) -> None:
        pause_s = self.engine.registry.lock.hang_limit_s / _LOOKS_PER_LIMIT
        while not self.engine.registry.lock.hung:  # noqa: ASYNC110 - a hung call sets no event
            await asyncio.sleep(pause_s)
        self._lose_device(_hang(self.engine.registry.lock))

    async def _check_when_idle(self) -> None:
        """Check the device when it has been idle for a while, so that no request finds it dead."""
        while True:
            await asyncio.sleep(max(self.idle_check_s - self.engine.registry.lock.idle_s, self.idle_check_s / 10))
            if self.engine.registry.warm and self.engine.registry.lock.idle_s >= self.idle_check_s:
                try:
                    await self.engine.check_device()
                except DeviceOutOfMemoryError as error:
                    _log.warning("the idle device could not be checked: %s", error)
                except DeviceLostError:
                    return  # the engine has reported it

    def _lose_device(self, reason: str) -> None:
        self.engine.lose_device(DeviceLostError(f"{reason}; the service is being replaced."))


def _hang(lock: BatchingLock) -> str:
    return f"A device call did not return within {round(lock.limit_s, 1):g} s"
