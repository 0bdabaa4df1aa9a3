"""Writes the section of the full scope: one table, and the verdict on each target."""

from collections.abc import Iterator

from benchmarks.compare.full import (
    CELLS,
    EIGHT,
    FOUR,
    FULL_KEYS,
    IMG2IMG,
    INT8,
    OPENVINO,
    OPENVINO_INT8,
    OURS,
    PLAIN,
    SMALL,
    TINY,
    TXT2IMG,
    titles,
)
from benchmarks.compare.results import FullResults
from benchmarks.compare.sections import NONE, Target, head, opening, over, table, target_table

_TITLES = titles()


def targets(results: FullResults) -> list[Target]:
    """Return the targets with the service's measured values."""
    memory, weights = results.memory_bytes(OURS), results.weights_bytes
    cpu, gain = "CPU time per image", "images per CPU time relative to one client"
    return [
        Target(f"512 px: {cpu} relative to OpenVINO GenAI", results.cpu_ratio(OURS, OPENVINO, TXT2IMG.key), 0.75, True),
        Target(f"512 px: {cpu} relative to plain in bf16", results.cpu_ratio(OURS, PLAIN, TXT2IMG.key), 0.45, True),
        Target(
            f"512 px, VAE of TAESDXL's shape: {cpu} relative to OpenVINO GenAI with the model's own VAE",
            results.cpu_ratio(TINY, OPENVINO, TXT2IMG.key),
            0.5,
            True,
        ),
        Target(
            f"512 px, int8: {cpu} relative to OpenVINO GenAI with int8 weights",
            results.cpu_ratio(INT8, OPENVINO_INT8, TXT2IMG.key),
            0.75,
            True,
        ),
        Target(
            f"512 px: {cpu}, image to image relative to text to image",
            results.cpu_ratio(OURS, OURS, IMG2IMG.key, other_scenario=TXT2IMG.key),
            1.25,
            True,
        ),
        Target(
            f"{FOUR.title}: {gain}",
            results.cpu_ratio(OURS, OURS, TXT2IMG.key, other_scenario=FOUR.key),
            1.2,
            False,
        ),
        Target(
            f"{EIGHT.title}: {gain}",
            results.cpu_ratio(OURS, OURS, SMALL.key, other_scenario=EIGHT.key),
            1.8,
            False,
        ),
        Target("peak memory relative to OpenVINO GenAI", over(memory, results.memory_bytes(OPENVINO)), 0.7, True),
        Target("peak memory relative to the weights as served", over(memory, weights), 1.3, True),
        Target(
            "time until ready relative to the bare pipeline",
            over(results.ready_s(OURS), results.ready_s("bare")),
            1.2,
            True,
        ),
    ]


def write(results: FullResults) -> str:
    """Return the section."""
    return "\n".join(_lines(results))


def _lines(results: FullResults) -> Iterator[str]:
    yield from opening(results)
    if results.weights_bytes:
        yield f"The weights as served have {results.weights_bytes / 2**30:.1f} GiB."
    yield ""
    yield from head(
        "CPU-seconds for each image, latency, memory, start",
        "CPU-seconds: the median of the rounds, and in brackets the lowest and the highest. All requests have fresh",
        "prompts and one step. p50 is the latency of one client. Memory in GiB: the peak of the proportional set size",
        "under load, and the peak of the resident size since the start.",
    )
    columns = [*(cell.title for cell in CELLS), "512 px, p50 in s", "memory", "since start", "ready after s", "CPU-s"]
    yield from table(["", *columns], [_row(results, server) for server in ("bare", *FULL_KEYS)])
    yield from (f"{_TITLES[server]} was not measured: {reason}." for server, reason in results.not_measured.items())
    bad = [f"{_TITLES[m.server]}: {reason}" for m in results.measurements for reason in m.bad]
    yield f"Bad answers, which do not count: {len(bad)}{'; ' + bad[0] if bad else ''}."
    yield ""
    yield from head("Targets", "A ratio of CPU times is the median of each round's ratio.")
    yield from target_table(targets(results))
    yield from ("### Versions", "")
    for server, found in results.versions.items():
        yield f"- {_TITLES[server]}: {', '.join(f'{name} {version}' for name, version in found.items())}"


def _row(results: FullResults, server: str) -> list[str]:
    return [
        _TITLES.get(server, "bare pipeline, bf16"),
        *(_cost(results, server, cell.key) for cell in CELLS),
        _shown(results.latency_s(server, TXT2IMG.key, 0.5), 2),
        *(
            _shown(size and size / 2**30, 1)
            for size in (results.memory_bytes(server), results.memory_since_start_bytes(server))
        ),
        _shown(results.ready_s(server), 1),
        _shown(results.start_cpu_s(server), 1),
    ]


def _cost(results: FullResults, server: str, scenario: str) -> str:
    extremes = results.cpu_range_s(server, scenario)
    if extremes is None:
        return NONE
    shown = _shown(results.cpu_s(server, scenario), 2)
    several = len(results.of(server, scenario)) > 1
    return f"{shown} ({extremes[0]:.2f} to {extremes[1]:.2f})" if several else shown


def _shown(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
