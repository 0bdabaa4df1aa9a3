"""The registry: one warm pipeline per mode, from the lifespan's start to its end."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Self

from app.errors import DeviceOutOfMemoryError, MemoryTooSmallError
from app.inference.batching_lock import BatchingLock
from app.inference.cost import CostModel, Request
from app.inference.device_guard import DeviceGuard, Outcome, Wanted
from app.inference.samples import warm_up_batches
from app.inference.start_progress import StartProgress
from app.pipelines.base import GenerationParams, LoadedPipelines, PipelineLoader

_log = logging.getLogger(__name__)

LOAD_LIMITS = 10
"""Loading may take this many hang limits: it reads and hashes gigabytes."""

_TELL_EVERY_S = 10
"""A start that takes longer logs its progress so often."""


@dataclass(eq=False)
class PipelineRegistry:
    """An async context manager that loads and warms up every mode on the device thread, and releases them at exit.

    Every mode is warmed up at each of `warm_up_sizes`, (width, height) in pixels, and at each of the loader's batch
    sizes, as the first call of a kind may compile. Commands that make pictures once skip that with `warm_up=False`.
    """

    load: PipelineLoader
    lock: BatchingLock
    _: KW_ONLY
    warm_up_sizes: Sequence[tuple[int, int]]
    warm_up: bool = True
    progress: StartProgress = field(default_factory=StartProgress)
    """Written by `load` too."""
    warm: bool = field(default=False, init=False)
    """Whether the pipelines are loaded, and warm unless `warm_up` is False."""
    costs: CostModel = field(init=False)
    _loaded: LoadedPipelines | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        """Load and warm up.

        Raises:
            MemoryTooSmallError: The device, or this process, has too little memory.
            TurboError: The weights, the device or a warm-up call failed.
        """
        telling = asyncio.create_task(self._tell_progress())
        try:
            await self._load_and_warm_up()
        except DeviceOutOfMemoryError as error:
            raise MemoryTooSmallError(
                "The weights and a first picture do not fit into memory; smaller TURBO_WARM_UP_SIZES take less."
            ) from error
        finally:
            telling.cancel()
        self.warm = True
        return self

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            _log.info("starting: %s", self.progress)

    async def _load_and_warm_up(self) -> None:
        started = time.monotonic()
        loaded = await self.lock.run(self.load, limit_s=LOAD_LIMITS * self.lock.hang_limit_s)
        seconds = time.monotonic() - started
        names = loaded.model if loaded.vae is None else f"{loaded.model} with the VAE {loaded.vae}"
        if loaded.loras:
            names = f"{names} and the LoRAs {', '.join(map(str, loaded.loras))}"
        dtype = f"{loaded.dtype} ({loaded.dtype_reason})" if loaded.dtype_reason else loaded.dtype
        _log.info("loaded %s on %s as %s in %.1f s", names, loaded.device_name, dtype, seconds)
        if loaded.fused_operators:
            _log.info("fused operators: %s", ", ".join(loaded.fused_operators))
        await self.lock.run(loaded.device.check)
        self._loaded = loaded
        self.costs = CostModel(loaded.work, size=self.warm_up_sizes[0], first_call_is_slow=loaded.first_call_is_slow)
        measured = await self._warm_up() if self.warm_up else []
        await self.lock.run(loaded.on_warm)
        if measured:
            self.costs.calibrate(measured)  # after `on_warm`, which may change the unit of `work`

    async def __aexit__(self, *_: object) -> None:
        """Drop the pipelines and end the device thread."""
        self.warm = False
        self._loaded = None
        self.lock.close()

    def call(self, requests: Sequence[Request], *, wanted: Wanted = lambda _: True) -> list[Outcome]:
        """Make the pictures of requests of one batch key; the contract is `DeviceGuard.call`. On the device thread."""
        guard = DeviceGuard(
            pipeline=self.loaded.by_mode[requests[0][0].mode],
            device=self.loaded.device,
            on_progress=self.lock.restart_clock,
            on_made=self.costs.learn if self.warm else lambda _, __: None,
        )
        return guard.call(requests, wanted=wanted)

    def hang_limit_s(self, request: Request) -> float:
        """Return the seconds after which a call for these pictures counts as hung; more before the warm-up's end."""
        limits = 1 if self.warm and self.warm_up else self.loaded.warm_up_limits
        return limits * self.costs.hang_limit_s(request, hang_limit_s=self.lock.hang_limit_s)

    @property
    def loaded(self) -> LoadedPipelines:
        """The loaded pipelines, inside the `async with` only."""
        if self._loaded is None:
            raise RuntimeError("the registry has not been entered")
        return self._loaded

    async def _warm_up(self) -> list[tuple[GenerationParams, float]]:
        """Make the warm-up's pictures. Return the single ones, each with the seconds of its call."""
        measured: list[tuple[GenerationParams, float]] = []
        batches = list(warm_up_batches(self.loaded, self.warm_up_sizes))
        self.progress.begin_warm_up(sum(map(len, batches)))
        for batch in batches:
            first, pictures, started = batch[0], len(batch), time.monotonic()
            (outcome,) = await self.lock.run(partial(self.call, [batch]), limit_s=self.hang_limit_s(batch))
            if isinstance(outcome, Exception):
                raise outcome
            seconds = time.monotonic() - started
            self.progress.add_pictures(pictures)
            if pictures == 1:
                measured.append((first, seconds))
            size = f"{first.width}x{first.height}"
            _log.info("warmed up %s at %s, %d at once, in %.2f s", first.mode, size, pictures, seconds)
        return measured
