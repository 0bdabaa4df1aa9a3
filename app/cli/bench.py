"""The benchmark of the operator's own hardware: the time of a picture, and the batch size that pays off."""

import asyncio
import itertools
import json
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from app.cli.stdout import own_stdout
from app.errors import DeviceOutOfMemoryError, TurboError
from app.images.encoding import MediaType, encode_image
from app.inference.device_watch import unless_hung
from app.inference.registry import PipelineRegistry
from app.inference.samples import sample_pictures
from app.main import make_registry
from app.modes.inpaint import DEFAULT_STRENGTH
from app.pipelines.base import GenerationParams, Mode, PipelineImage, buckets
from app.settings import Settings
from app.weights.source import FakeSource, parse_source

T = TypeVar("T")

_CELL_S, _MIN_CALLS, _MAX_CALLS = 3.0, 3, 50
"""Seconds spent on each row, within the bounds of its calls."""

_STEPS = {Mode.TXT2IMG: (1, 2, 3, 4), Mode.IMG2IMG: (2, 4), Mode.INPAINT: (4,)}
"""Measured steps; batches are measured at the first, the default of a request."""

_WORTH = 1.03
"""A larger batch is recommended if it makes at least this many times the pictures per second of a smaller batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The times of `calls` calls of the same kind, each with `batch` pictures.

    Attributes:
        p95_s: 95th percentile of seconds; with few calls, nearly the slowest.
        images_per_s: Pictures per second at the median.
        stages: Share of each stage, from one further call that waits for each stage; `other` is the rest.
        deviation: Largest difference from the same pictures made alone, in levels of 255; None for a single picture.
        memory_bytes: Peak memory so far: of the device as torch's allocator reports it, or of the process on a CPU.
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
    """Measure, print the figures to stdout and progress to stderr, and return the process's exit code.

    The caller must end the process at once, because the device thread may hang in a call.
    """
    with own_stdout() as stdout:
        try:
            if isinstance(parse_source(settings.model), FakeSource):
                _progress("The fake has no model to measure. Set TURBO_MODEL.")
                return 1
            _progress(f"loading {settings.model}")
            registry = make_registry(settings)
            report = asyncio.run(unless_hung(_load_and_measure(registry, settings), registry.lock))
        except TurboError as error:
            _progress(f"{error.detail} {error.remedy}".rstrip())
            return 1
        text = json.dumps(report, indent=2, default=asdict) if as_json else "\n".join(_lines(report))
        with suppress(BrokenPipeError):  # a reader such as `head` may stop early
            print(text, file=stdout, flush=True)
    return 0


async def _load_and_measure(registry: PipelineRegistry, settings: Settings) -> dict[str, Any]:
    """Load and warm up as the service does, and measure on the device thread."""
    sizes = registry.warm_up_sizes
    async with registry:
        bench = _Bench(registry)
        rows = await bench.measure_all(sizes, max_batch=settings.max_batch)
        return {
            "model": registry.loaded.model,
            "vae": registry.loaded.vae,
            "device": registry.loaded.device_name,
            "dtype": registry.loaded.dtype,
            "batching": settings.batching,
            "measurements": rows,
            "encode_ms": {f"{size[0]}x{size[1]}": await bench.encode_ms(size) for size in sizes},
            "recommended_max_batch": {f"{size[0]}x{size[1]}": recommended_batch(rows, size) for size in sizes},
        }


class _Bench:
    """Measures calls on the device thread.

    Each timed prompt has a number of its own: prompts of users are mostly new, and a repeated prompt is cached.
    """

    def __init__(self, registry: PipelineRegistry) -> None:
        self._registry = registry
        self._device: Any = registry.loaded.device  # Any, because the peak memory is behind the seam
        self._numbers = itertools.count()

    async def measure_all(self, sizes: Sequence[tuple[int, int]], *, max_batch: int) -> list[Measurement]:
        """Measure every mode, size, number of steps and batch size that the device has memory for."""
        cells = [
            (mode, size, steps, batch)
            for size in sizes
            for mode in Mode
            for steps in _STEPS[mode]
            for batch in (buckets(max_batch) if steps == _STEPS[mode][0] else [1])
        ]
        rows: list[Measurement] = []
        too_large: set[tuple[Mode, tuple[int, int]]] = set()
        for number, (mode, size, steps, batch) in enumerate(cells, start=1):
            default: dict[str, Any] = {"strength": DEFAULT_STRENGTH} if mode is Mode.INPAINT else {}
            samples = sample_pictures(mode, size, batch)
            pictures = [replace(params, num_inference_steps=steps, **default) for params in samples]
            worth = self._registry.loaded.by_mode[mode].batch_limit(pictures[0].batch_key)  # learned from smaller ones
            if batch > worth or ((mode, size) in too_large and batch > 1):
                continue
            pipeline: Any = self._registry.loaded.by_mode[mode]  # Any, because its batch sizes are behind the seam
            if batch > 1 and not pipeline.batch_sizes.allows(pictures[0].batch_key, batch):
                continue
            name = f"{mode} {size[0]}x{size[1]}, {steps} steps, {batch} at once"
            _progress(f"[{number}/{len(cells)}] {name}")
            try:
                with pipeline.batch_sizes.unsplit() if batch > 1 else nullcontext():
                    rows.append(await self._measure(pictures))
            except DeviceOutOfMemoryError:
                _progress(f"{name}: the device does not have enough memory")
                await self._registry.lock.run(self._device.free_memory)
                too_large.add((mode, size))
        return rows

    async def _measure(self, pictures: Sequence[GenerationParams]) -> Measurement:
        first, count = pictures[0], len(pictures)
        pipeline: Any = self._registry.loaded.by_mode[first.mode]  # Any, because the stages are behind the seam

        def timed_call() -> float:
            batch = [replace(params, prompt=f"{params.prompt}, {next(self._numbers)}") for params in pictures]
            started = time.perf_counter()
            pipeline(batch)
            return time.perf_counter() - started

        await self._run(timed_call, pictures)
        times_s: list[float] = []
        while len(times_s) < _MIN_CALLS or (sum(times_s) < _CELL_S and len(times_s) < _MAX_CALLS):
            times_s.append(await self._run(timed_call, pictures))
        with pipeline.timed_stages() as stages_s:
            staged_s = await self._run(timed_call, pictures)
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
            deviation=await self._deviation(pictures) if count > 1 else None,
            memory_bytes=self._device.peak_memory_bytes,
        )

    async def _deviation(self, pictures: Sequence[GenerationParams]) -> int:
        """Return the largest difference between pictures of a batch and the same pictures made alone, in levels."""
        together = await self._make(pictures)
        alone = [(await self._make([params]))[0] for params in pictures]
        return max(
            int(np.abs(made.pixels.astype(int) - single.pixels).max())
            for made, single in zip(together, alone, strict=True)
        )

    async def encode_ms(self, size: tuple[int, int]) -> float:
        """Return the median milliseconds to encode a PNG, which the service does on other threads."""
        (made,) = await self._make(sample_pictures(Mode.TXT2IMG, size, 1))
        times_s = timeit.repeat(lambda: encode_image(made.pixels, MediaType.PNG), number=1, repeat=9)
        return statistics.median(times_s) * 1000

    async def _make(self, pictures: Sequence[GenerationParams]) -> Sequence[PipelineImage]:
        return await self._run(partial(self._registry.loaded.by_mode[pictures[0].mode], pictures), pictures)

    async def _run(self, call: Callable[[], T], pictures: Sequence[GenerationParams]) -> T:
        return await self._registry.lock.run(call, limit_s=self._registry.hang_limit_s(pictures))


def recommended_batch(rows: Sequence[Measurement], size: tuple[int, int]) -> int:
    """Return the smallest batch size that no larger batch clearly outperforms in pictures per second, in any mode."""
    best = 1
    for mode in Mode:
        rates = {
            row.batch: row.images_per_s
            for row in rows
            if row.mode is mode and (row.width, row.height) == size and row.num_inference_steps == _STEPS[mode][0]
        }
        chosen = 1
        for batch in sorted(rates):
            if rates[batch] > rates[chosen] * _WORTH:
                chosen = batch
        best = max(best, chosen)
    return best


def _lines(report: dict[str, Any]) -> Iterator[str]:
    vae = f" with the VAE {report['vae']}" if report["vae"] else ""
    yield f"{report['model']}{vae} on {report['device']} as {report['dtype']}, TURBO_BATCHING={report['batching']}"
    yield from map(str, report["measurements"])
    for size, milliseconds in report["encode_ms"].items():
        yield f"PNG     {size}  {milliseconds:.1f} ms, on other threads in parallel with the device"
    for size, batch in report["recommended_max_batch"].items():
        yield f"For {size}: TURBO_MAX_BATCH={batch}"
    yield "Batch sizes that are not listed are not used: they are not faster, or would change bytes."


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
