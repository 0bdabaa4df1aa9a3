"""The benchmark of the operator's own hardware: what a picture takes here, and how many are worth making at once."""

import asyncio
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from app.cli.stdout import own_stdout
from app.errors import DeviceLostError, DeviceOutOfMemoryError, TurboError
from app.images.encoding import MediaType, encode_image
from app.inference.device_lock import DeviceLock
from app.inference.device_watch import unless_hung
from app.inference.registry import PipelineRegistry
from app.inference.samples import sample_pictures
from app.main import load_folder
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode, PipelineImage, buckets
from app.settings import Settings, parse_sizes
from app.weights.source import FakeSource, WeightsSource, parse_source
from app.weights.store import locate

T = TypeVar("T")

_CELL_S = 3.0
"""Seconds that are spent on each row, if that makes enough calls."""

_CALLS = (3, 50)
"""Calls of a row, at least and at most."""

_STEPS = {Mode.TXT2IMG: (1, 2, 3, 4), Mode.IMG2IMG: (2, 4)}
"""Steps that are measured; batches are at the first, which is the default of a request."""

_WORTH = 1.03
"""How many times the pictures per second of a smaller batch a larger one has to make to be recommended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One kind of call: its seconds, what it makes of them, and where they went.

    Attributes:
        batch: Pictures of the call.
        calls: Calls that were timed.
        p50_s: Median seconds of a call.
        p95_s: 95th percentile; with few calls, nearly the slowest.
        images_per_s: Pictures per second, at the median.
        stages: Share of each stage in one call more, whose stages were waited for one by one; `other` is the rest.
        deviation: Largest difference from the same pictures made alone, of 255 levels; None of a single picture.
        memory_bytes: Largest memory so far: the device's by torch's allocator, or the process's on a CPU.
    """

    mode: Mode
    width: int
    height: int
    num_inference_steps: int
    batch: int
    calls: int
    p50_s: float
    p95_s: float
    images_per_s: float
    stages: dict[str, float]
    deviation: int | None
    memory_bytes: int

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {share:.0%}" for name, share in self.stages.items())
        deviation = "" if self.deviation is None else f", within {self.deviation}/255 of alone"
        return (
            f"{self.mode:<7} {self.width}x{self.height}  {self.num_inference_steps} steps  batch {self.batch:<2}  "
            f"p50 {self.p50_s * 1000:7.1f} ms  p95 {self.p95_s * 1000:7.1f} ms  {self.images_per_s:6.2f} images/s  "
            f"{self.memory_bytes / (1 << 20):6.0f} MiB  ({stages}){deviation}"
        )


def bench(settings: Settings, *, as_json: bool) -> int:
    """Measure, print the figures, and return the process's exit code.

    Stdout gets the figures and nothing else; progress goes to stderr. The caller should end the process at once: the
    device thread may still be in a call that hangs.
    """
    with own_stdout() as stdout:
        try:
            source = parse_source(settings.model)
            if isinstance(source, FakeSource):
                _progress("The fake has no model to measure. Set TURBO_MODEL.")
                return 1
            _progress(f"loading {source.name}")
            report = asyncio.run(_load_and_measure(source, settings))
        except DeviceLostError as error:
            _progress(f"{error.what_failed} {error.remedy}".rstrip())
            return 1
        except TurboError as error:
            _progress(str(error))
            return 1
        with suppress(BrokenPipeError):  # `bench | head` has read enough
            print(json.dumps(report, indent=2) if as_json else _as_text(report), file=stdout, flush=True)
    return 0


async def _load_and_measure(source: WeightsSource, settings: Settings) -> dict[str, Any]:
    """Load and warm up as the service does, and measure on the device thread.

    Raises:
        TurboError: It cannot be loaded, or the device failed, or hangs.
    """
    device_lock = DeviceLock(hang_limit_s=settings.hang_limit_s)
    sizes = parse_sizes(settings.warm_up_sizes)

    def load() -> LoadedPipelines:
        return load_folder(locate(source, settings.weights_dir), settings, model=source.name)

    registry = PipelineRegistry(load, device_lock, warm_up_sizes=sizes)
    async with AsyncExitStack() as stack:
        await unless_hung(stack.enter_async_context(registry), device_lock)
        return await _measure(registry, device_lock, settings, sizes)


async def _measure(
    registry: PipelineRegistry, device_lock: DeviceLock, settings: Settings, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    loaded = registry.loaded
    cells = [
        (mode, size, steps, batch)
        for size in sizes
        for mode in Mode
        for steps in _STEPS[mode]
        for batch in (buckets(settings.max_batch) if steps == _STEPS[mode][0] else [1])
        if batch <= loaded.by_mode[mode].batch_limit(sample_pictures(mode, size, 1)[0].batch_key)
    ]
    rows: list[Measurement] = []
    numbers = itertools.count()
    too_large: set[tuple[Mode, tuple[int, int]]] = set()
    for number, (mode, size, steps, batch) in enumerate(cells, start=1):
        name = f"{mode} {size[0]}x{size[1]}, {steps} steps, {batch} at once"
        if (mode, size) in too_large and batch > 1:
            continue
        _progress(f"[{number}/{len(cells)}] {name}")
        pictures = [replace(params, num_inference_steps=steps) for params in sample_pictures(mode, size, batch)]
        cell = _Cell(loaded, pictures, numbers, device_lock, limit_s=registry.hang_limit_s(pictures))
        try:
            rows.append(await cell.measure())
        except DeviceOutOfMemoryError:
            _progress(f"{name}: the device has no memory for it")
            await unless_hung(device_lock.run(loaded.device.free_memory), device_lock)
            too_large.add((mode, size))
    return {
        "model": loaded.model,
        "device": loaded.device_name,
        "dtype": loaded.dtype,
        "batching": settings.batching,
        "measurements": [asdict(row) for row in rows],
        "encode_ms": {
            f"{width}x{height}": await _encode_ms(registry, device_lock, (width, height)) for width, height in sizes
        },
        "recommended_max_batch": {
            f"{width}x{height}": recommended_batch(rows, (width, height)) for width, height in sizes
        },
    }


class _Cell:
    """Calls of the same pictures; every prompt gets the next number and so is a new one, as users' mostly are."""

    def __init__(
        self,
        loaded: LoadedPipelines,
        pictures: Sequence[GenerationParams],
        numbers: Iterator[int],
        device_lock: DeviceLock,
        *,
        limit_s: float,
    ) -> None:
        self._pictures = pictures
        self._pipeline: Any = loaded.by_mode[pictures[0].mode]  # the stages are behind the seam
        self._device: Any = loaded.device
        self._numbers = numbers
        self._device_lock = device_lock
        self._limit_s = limit_s

    async def measure(self) -> Measurement:
        """Time the calls.

        Raises:
            DeviceOutOfMemoryError: The device has no memory for them.
            DeviceLostError: The device failed, or hangs.
        """
        await self._on_device(self._call)
        times_s: list[float] = []
        at_least, at_most = _CALLS
        while len(times_s) < at_least or (sum(times_s) < _CELL_S and len(times_s) < at_most):
            times_s.append(await self._on_device(self._call))
        with self._pipeline.timed_stages() as stages_s:
            staged_s = await self._on_device(self._call)
        first, count = self._pictures[0], len(self._pictures)
        p50_s = statistics.median(times_s)
        return Measurement(
            mode=first.mode,
            width=first.width,
            height=first.height,
            num_inference_steps=first.num_inference_steps,
            batch=count,
            calls=len(times_s),
            p50_s=p50_s,
            p95_s=float(np.percentile(times_s, 95)),
            images_per_s=count / p50_s,
            stages={name: seconds / staged_s for name, seconds in stages_s.items()}
            | {"other": 1 - sum(stages_s.values()) / staged_s},
            deviation=await self._deviation() if count > 1 else None,
            memory_bytes=self._device.peak_memory_bytes,
        )

    async def _on_device(self, call: Callable[[], T]) -> T:
        return await unless_hung(self._device_lock.run(call, limit_s=self._limit_s), self._device_lock)

    def _call(self) -> float:
        batch = [replace(params, prompt=f"{params.prompt}, {next(self._numbers)}") for params in self._pictures]
        started = time.perf_counter()
        self._pipeline(batch)
        return time.perf_counter() - started

    async def _deviation(self) -> int:
        """Return by how many of 255 levels pictures of a batch differ at most from the same ones made alone."""
        together: list[PipelineImage] = await self._on_device(partial(self._pipeline, self._pictures))
        alone = [(await self._on_device(partial(self._pipeline, [params])))[0] for params in self._pictures]
        return max(
            int(np.abs(made.pixels.astype(int) - single.pixels).max())
            for made, single in zip(together, alone, strict=True)
        )


async def _encode_ms(registry: PipelineRegistry, device_lock: DeviceLock, size: tuple[int, int]) -> float:
    """Return the milliseconds that a PNG takes; other threads do that while the device goes on."""
    sample = sample_pictures(Mode.TXT2IMG, size, 1)
    call = device_lock.run(
        partial(registry.loaded.by_mode[Mode.TXT2IMG], sample), limit_s=registry.hang_limit_s(sample)
    )
    (made,) = await unless_hung(call, device_lock)

    def encode() -> float:
        started = time.perf_counter()
        encode_image(made.pixels, MediaType.PNG)
        return (time.perf_counter() - started) * 1000

    return statistics.median(encode() for _ in range(9))


def recommended_batch(rows: Sequence[Measurement], size: tuple[int, int]) -> int:
    """Return the smallest batch beyond which no larger one makes notably more pictures per second, in any mode."""
    best = 1
    for mode in Mode:
        rates = {
            row.batch: row.images_per_s
            for row in rows
            if row.mode is mode and (row.width, row.height) == size and row.num_inference_steps == _STEPS[mode][0]
        }
        chosen = 1
        for batch in sorted(rates):
            if rates[batch] > rates.get(chosen, math.inf) * _WORTH:
                chosen = batch
        best = max(best, chosen)
    return best


def _as_text(report: dict[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"{report['model']} on {report['device']} as {report['dtype']}, TURBO_BATCHING={report['batching']}"
    yield from (str(Measurement(**row)) for row in report["measurements"])
    for size, milliseconds in report["encode_ms"].items():
        yield f"PNG     {size}  {milliseconds:.1f} ms, on other threads while the device goes on"
    for size, batch in report["recommended_max_batch"].items():
        yield f"For {size}: TURBO_MAX_BATCH={batch}"
    yield "Batches that are not listed are made in smaller parts, as with these settings larger ones gain nothing."


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
