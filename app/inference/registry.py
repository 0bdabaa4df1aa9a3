"""The registry: one warm pipeline per mode, from the lifespan's start to its end."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from PIL import Image

from app.inference.device_guard import DeviceGuard
from app.inference.device_lock import DeviceLock
from app.pipelines.base import (
    GenerationParams,
    Img2ImgParams,
    LoadedPipelines,
    Mode,
    Pipeline,
    PipelineLoader,
    Txt2ImgParams,
)

_log = logging.getLogger(__name__)

_LOAD_LIMITS = 10
"""How many times the hang limit loading may take: gigabytes are read, and every file's hash is made."""


class PipelineRegistry:
    """An async context manager: entering loads and warms every mode on the device thread, leaving lets them go.

    Every mode is warmed up at each of `warm_up_sizes`, (width, height) in pixels: the first call at a size may compile.
    """

    def __init__(
        self, load: PipelineLoader, device_lock: DeviceLock, *, warm_up_sizes: Sequence[tuple[int, int]]
    ) -> None:
        self._load = load
        self._device_lock = device_lock
        self._warm_up_sizes = warm_up_sizes
        self._loaded: LoadedPipelines | None = None
        self._warm_call_s = 0.0

    async def __aenter__(self) -> Self:
        """Load and warm up.

        Raises:
            TurboError: The weights, the device or a warm-up call failed.
        """
        loaded = await self._device_lock.run(self._load_and_log, pictures=_LOAD_LIMITS)
        await self._device_lock.run(loaded.device.check)
        guard = DeviceGuard(loaded.device, on_progress=self._device_lock.restart_clock)
        for size in self._warm_up_sizes:
            for params in _warm_up_params(*size):
                started = time.monotonic()
                await self._device_lock.run(partial(guard.call, loaded.by_mode[params.mode], [params]))
                self._warm_call_s = time.monotonic() - started
                _log.info("warmed up %s at %dx%d in %.2f s", params.mode, *size, self._warm_call_s)
        await self._device_lock.run(loaded.on_warm)
        self._loaded = loaded
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop the pipelines and end the device thread."""
        self._loaded = None
        self._device_lock.close()

    def __getitem__(self, mode: Mode) -> Pipeline:
        """Return the mode's warm pipeline."""
        return self.loaded.by_mode[mode]

    @property
    def warm(self) -> bool:
        """Whether the pipelines are loaded and warm."""
        return self._loaded is not None

    @property
    def loaded(self) -> LoadedPipelines:
        """What was loaded; only between entering and leaving."""
        if self._loaded is None:
            raise RuntimeError("the registry has not been entered")
        return self._loaded

    @property
    def warm_call_s(self) -> float:
        """Seconds that the last warm-up call took: the first guess at what a request takes."""
        return self._warm_call_s

    def _load_and_log(self) -> LoadedPipelines:
        started = time.monotonic()
        loaded = self._load()
        _log.info("loaded %s on %s as %s in %.1f s", *_describe(loaded), time.monotonic() - started)
        return loaded


def _describe(loaded: LoadedPipelines) -> tuple[str, str, str]:
    return loaded.model, loaded.device_name, loaded.dtype


def _warm_up_params(width: int, height: int) -> tuple[GenerationParams, ...]:
    return (
        Txt2ImgParams(prompt="warm-up", seed=0, num_inference_steps=1, width=width, height=height),
        Img2ImgParams(
            prompt="warm-up",
            seed=0,
            num_inference_steps=2,
            strength=0.5,
            image=Image.new("RGB", (width, height), "gray"),
        ),
    )
