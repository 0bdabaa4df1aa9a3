"""The registry: one warm pipeline per mode, from the lifespan's start to its end."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from app.inference.cost import CostModel
from app.inference.device_guard import DeviceGuard, Outcome, Wanted
from app.inference.device_lock import DeviceLock
from app.inference.samples import warm_up_batches
from app.pipelines.base import BatchKey, CacheStatistics, GenerationParams, LoadedPipelines, PipelineLoader

_log = logging.getLogger(__name__)

LOAD_LIMITS = 10
"""How many times the hang limit loading may take: gigabytes are read, and every file's hash is made."""


class PipelineRegistry:
    """An async context manager: entering loads and warms every mode on the device thread, leaving lets them go.

    Every mode is warmed up at each of `warm_up_sizes`, (width, height) in pixels, and with as many pictures at once as
    the loader names: the first call of a kind may compile. Without `warm_up`, a command makes its own pictures first.
    """

    def __init__(
        self,
        load: PipelineLoader,
        device_lock: DeviceLock,
        *,
        warm_up_sizes: Sequence[tuple[int, int]],
        warm_up: bool = True,
    ) -> None:
        self._load = load
        self._device_lock = device_lock
        self._warm_up_sizes = warm_up_sizes
        self._warms_up = warm_up
        self._loaded: LoadedPipelines | None = None
        self._costs: CostModel | None = None
        self._warm = False

    async def __aenter__(self) -> Self:
        """Load and warm up.

        Raises:
            TurboError: The weights, the device or a warm-up call failed.
        """
        load_limit_s = LOAD_LIMITS * self._device_lock.hang_limit_s
        loaded = await self._device_lock.run(self._load_and_log, limit_s=load_limit_s)
        await self._device_lock.run(loaded.device.check)
        self._loaded = loaded
        self._costs = CostModel(
            loaded.work,
            size=next(iter(self._warm_up_sizes), None),
            first_call_is_slow=loaded.first_call_is_slow,
        )
        measured: list[tuple[GenerationParams, float]] = []
        for batch in warm_up_batches(loaded, self._warm_up_sizes) if self._warms_up else ():
            first, pictures, started = batch[0], len(batch), time.monotonic()
            await self._device_lock.run(partial(self._warm_up, batch), limit_s=self.hang_limit_s(batch))
            seconds = time.monotonic() - started
            if pictures == 1:
                measured.append((first, seconds))
            _log.info(
                "warmed up %s at %dx%d, %d at once, in %.2f s",
                first.mode,
                first.width,
                first.height,
                pictures,
                seconds,
            )
        await self._device_lock.run(loaded.on_warm)
        if measured:
            self._costs.calibrate(measured)
        self._warm = True
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop the pipelines and end the device thread."""
        self._warm = False
        self._loaded = None
        self._device_lock.close()

    def call(self, requests: Sequence[Sequence[GenerationParams]], *, wanted: Wanted = lambda _: True) -> list[Outcome]:
        """Make the pictures of requests of one batch key; the contract is `DeviceGuard.call`. On the device thread."""
        guard = DeviceGuard(
            self.loaded.device,
            on_progress=self._device_lock.restart_clock,
            on_made=self.costs.learn if self._warm else lambda _, __: None,
        )
        return guard.call(self.loaded.by_mode[requests[0][0].mode], requests, wanted=wanted)

    def hang_limit_s(self, request: Sequence[GenerationParams]) -> float:
        """Return the seconds after which a call for these pictures counts as hung; more for a first call."""
        limits = 1 if self._warm and self._warms_up else self.loaded.warm_up_limits
        return limits * self.costs.hang_limit_s(request, hang_limit_s=self._device_lock.hang_limit_s)

    def batch_limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making in one call."""
        return self.loaded.by_mode[key.mode].batch_limit(key)

    @property
    def warm(self) -> bool:
        """Whether the pipelines are loaded and warm."""
        return self._warm

    @property
    def loaded(self) -> LoadedPipelines:
        """What was loaded; only from the moment when it is to the end."""
        if self._loaded is None:
            raise RuntimeError("the registry has not been entered")
        return self._loaded

    @property
    def costs(self) -> CostModel:
        """The cost of calls on this device; available once the pipelines are loaded."""
        if self._costs is None:
            raise RuntimeError("the registry has not been entered")
        return self._costs

    def prompt_cache(self) -> CacheStatistics:
        """Return how the cache of prompts does; nothing of note before it is loaded. From any thread."""
        return CacheStatistics() if self._loaded is None else self._loaded.prompt_cache()

    def _warm_up(self, batch: Sequence[GenerationParams]) -> None:
        (outcome,) = self.call([batch])
        if isinstance(outcome, Exception):
            raise outcome

    def _load_and_log(self) -> LoadedPipelines:
        started = time.monotonic()
        loaded = self._load()
        _log.info("loaded %s on %s as %s in %.1f s", *_describe(loaded), time.monotonic() - started)
        return loaded


def _describe(loaded: LoadedPipelines) -> tuple[str, str, str]:
    return loaded.model, loaded.device_name, loaded.dtype
