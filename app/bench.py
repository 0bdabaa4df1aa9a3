"""The benchmark of the operator's own hardware: what a picture takes here, and how many are worth making at once."""

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.errors import DeviceOutOfMemoryError, TurboError
from app.inference.image_codec import MediaType, encode_image
from app.inference.samples import sample_pictures, warm_up_batches
from app.main import load_folder
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode, PipelineImage, buckets
from app.settings import Settings, parse_sizes
from app.weights.source import FakeSource, parse_source
from app.weights.store import locate

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
    """Measure, and print the figures to stdout; progress goes to stderr. Return the process's exit code."""
    try:
        source = parse_source(settings.model)
        if isinstance(source, FakeSource):
            print("The fake has no model to measure. Set TURBO_MODEL.", file=sys.stderr)  # noqa: T201
            return 1
        _progress(f"loading {source.name}")
        loaded = load_folder(locate(source, settings.weights_dir), settings, model=source.name)
        report = _measure(loaded, settings)
    except TurboError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(report, indent=2) if as_json else _as_text(report))  # noqa: T201
    return 0


def _measure(loaded: LoadedPipelines, settings: Settings) -> dict[str, Any]:
    sizes = parse_sizes(settings.warm_up_sizes)
    _warm_up(loaded, sizes)
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
        try:
            pictures = [replace(params, num_inference_steps=steps) for params in sample_pictures(mode, size, batch)]
            rows.append(_measure_cell(loaded, pictures, numbers))
        except DeviceOutOfMemoryError:
            _progress(f"{name}: the device has no memory for it")
            loaded.device.free_memory()
            too_large.add((mode, size))
    return {
        "model": loaded.model,
        "device": loaded.device_name,
        "dtype": loaded.dtype,
        "batching": settings.batching,
        "measurements": [asdict(row) for row in rows],
        "encode_ms": {f"{width}x{height}": _encode_ms(loaded, (width, height)) for width, height in sizes},
        "recommended_max_batch": {
            f"{width}x{height}": recommended_batch(rows, (width, height)) for width, height in sizes
        },
    }


def _warm_up(loaded: LoadedPipelines, sizes: Sequence[tuple[int, int]]) -> None:
    """Do as the service does before it opens its port: what compiles and what is learned is done here."""
    for batch in warm_up_batches(loaded, sizes):
        first = batch[0]
        _progress(f"warming up {first.mode} {first.width}x{first.height}, {len(batch)} at once")
        loaded.by_mode[first.mode](batch)
    loaded.on_warm()


def _measure_cell(loaded: LoadedPipelines, pictures: Sequence[GenerationParams], numbers: Iterator[int]) -> Measurement:
    """Time calls of these pictures; every prompt gets the next number and so is a new one, as users' mostly are."""
    first = pictures[0]
    pipeline: Any = loaded.by_mode[first.mode]  # the stages are behind the seam

    def call() -> float:
        batch = [replace(params, prompt=f"{params.prompt}, {next(numbers)}") for params in pictures]
        started = time.perf_counter()
        pipeline(batch)
        return time.perf_counter() - started

    call()
    times_s: list[float] = []
    at_least, at_most = _CALLS
    while len(times_s) < at_least or (sum(times_s) < _CELL_S and len(times_s) < at_most):
        times_s.append(call())
    with pipeline.timed_stages() as stages_s:
        staged_s = call()
    p50_s = statistics.median(times_s)
    device: Any = loaded.device
    return Measurement(
        mode=first.mode,
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        batch=len(pictures),
        calls=len(times_s),
        p50_s=p50_s,
        p95_s=float(np.percentile(times_s, 95)),
        images_per_s=len(pictures) / p50_s,
        stages={name: seconds / staged_s for name, seconds in stages_s.items()}
        | {"other": 1 - sum(stages_s.values()) / staged_s},
        deviation=_deviation(pipeline, pictures) if len(pictures) > 1 else None,
        memory_bytes=device.peak_memory_bytes,
    )


def _deviation(pipeline: Any, pictures: Sequence[GenerationParams]) -> int:
    """Return by how many of 255 levels pictures of a batch differ at most from the same ones made alone."""
    together: list[PipelineImage] = pipeline(pictures)
    return max(
        int(np.abs(made.pixels.astype(int) - pipeline([params])[0].pixels).max())
        for made, params in zip(together, pictures, strict=True)
    )


def _encode_ms(loaded: LoadedPipelines, size: tuple[int, int]) -> float:
    """Return the milliseconds that a PNG takes; other threads do that while the device goes on."""
    (made,) = loaded.by_mode[Mode.TXT2IMG](sample_pictures(Mode.TXT2IMG, size, 1))

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
