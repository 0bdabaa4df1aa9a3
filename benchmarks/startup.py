"""Measures starts of the service with a model of SDXL-Turbo's size: from the process's start to readiness.

    .venv/bin/python -m benchmarks.startup [--model build/full-size/sdxl-turbo] [--rounds 3]

Prints a table. Exit code 1: with the files not in the page cache, a start took longer than 1.2 times the reading of the
files and a picture in each mode.
"""

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from app.weights.layout import files_to_read
from benchmarks.full_size import FOLDER
from benchmarks.soak.service import until_ready
from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import ROOT, interpreter, launch
from benchmarks.support.ports import free_port

_LOG = ROOT / "build" / "bench" / "startup.log"
_BYTECODE = ROOT / "build" / "bench" / "bytecode"
"""Compiled modules, as an installation has them."""

_START_LIMIT_S = 600
_PICTURE_LIMIT_S = 600
_MOST = 1.2
_BUFFER_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Start:
    """One start. Its load begins when the web server's modules are imported, and imports torch."""

    ready_s: float
    load_s: float
    warm_up_s: float
    cpu_s: float
    disk_bytes: int
    peak_bytes: int

    @property
    def rest_s(self) -> float:
        return self.ready_s - self.load_s - self.warm_up_s


def _drop(paths: Sequence[Path]) -> None:
    """Remove files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_s(paths: Sequence[Path]) -> float:
    """Read files once, and return the seconds."""
    buffer = bytearray(_BUFFER_BYTES)
    began = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


class _Service:
    """A service process that has just become ready, and its start."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        environment = os.environ | {
            "PYTHONPYCACHEPREFIX": str(_BYTECODE),
            "TURBO_DEVICE": "cpu",
            "TURBO_LOG_FORMAT": "json",
            "TURBO_MODEL": str(model),
            "TURBO_PORT": str(self.port),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _LOG.unlink(missing_ok=True)
        began = time.perf_counter()
        self._process = launch([str(interpreter()), "-m", "app", "serve"], environment, _LOG)
        try:
            asyncio.run(until_ready(self.port, within_s=_START_LIMIT_S, log=_LOG))
        except BaseException:
            self.stop()
            raise
        ready_s = time.perf_counter() - began
        events = [json.loads(line)["event"] for line in _LOG.read_text().splitlines() if line.startswith("{")]
        self.start = _Start(
            ready_s,
            sum(float(found[1]) for event in events if (found := re.search(r"^loaded .* in ([\d.]+) s$", event))),
            sum(float(found[1]) for event in events if (found := re.search(r"^warmed up .* in ([\d.]+) s$", event))),
            process_tree.cpu_seconds(self._process.pid),
            _disk_bytes(self._process.pid),
            process_tree.peak_rss_bytes(self._process.pid),
        )

    def pictures_s(self) -> dict[str, float]:
        """Make a picture in each mode, of one step, and return the seconds of its call."""
        picture = _png(Image.radial_gradient("L").resize((512, 512)).convert("RGB"))
        mask = _png(Image.new("L", (512, 512), 255))
        asked: Mapping[str, Mapping[str, object]] = {
            "txt2img": {"json": {"prompt": "a lighthouse"}},
            "img2img": {
                "data": {"prompt": "a harbour", "num_inference_steps": "2", "strength": "0.5"},
                "files": {"image": ("image.png", picture)},
            },
            "inpaint": {
                "data": {"prompt": "a boat", "num_inference_steps": "1", "strength": "1"},
                "files": {"image": ("image.png", picture), "mask": ("mask.png", mask)},
            },
        }
        found = {}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=_PICTURE_LIMIT_S) as client:
            for mode, fields in asked.items():
                answer = client.post(f"/{mode}", **fields).raise_for_status()  # type: ignore[arg-type] # of each mode
                timing = re.search(r"inference;dur=([\d.]+)", answer.headers["server-timing"])
                assert timing is not None
                found[mode] = float(timing[1]) / 1000
        return found

    def stop(self) -> None:
        process_tree.end(self._process.pid)
        self._process.wait()


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _disk_bytes(pid: int) -> int:
    found = re.search(r"^read_bytes: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _compile() -> None:
    """Compile the modules, as an installation does."""
    modules = "import app.main, app.cli.commands, app.pipelines.sdxl_turbo"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(_BYTECODE), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([str(interpreter()), "-c", modules], env=environment, check=True, cwd=ROOT)


class _Results:
    """The starts and readings with a cold and with a warm page cache, and the pictures."""

    def __init__(self) -> None:
        self.starts: dict[str, list[_Start]] = {"cold": [], "warm": []}
        self.reads_s: dict[str, list[float]] = {"cold": [], "warm": []}
        self._pictures_s: list[dict[str, float]] = []

    def measure(self, model: Path, paths: Sequence[Path], cache: str) -> None:
        """Read the files, and start the service."""
        if cache == "cold":
            _drop(paths)
        self.reads_s[cache].append(_read_s(paths))
        if cache == "cold":
            _drop(paths)
        service = _Service(model)
        try:
            self.starts[cache].append(service.start)
            self._pictures_s.append(service.pictures_s())
        finally:
            service.stop()

    @property
    def pictures_s(self) -> dict[str, float]:
        return {mode: statistics.median(each[mode] for each in self._pictures_s) for mode in self._pictures_s[0]}

    def ratio(self, cache: str) -> float:
        """Return the time of the median start, relative to reading the files and making a picture in each mode."""
        return self._median(cache).ready_s / (statistics.median(self.reads_s[cache]) + sum(self.pictures_s.values()))

    def row(self, cache: str) -> str:
        start = self._median(cache)
        cells = (
            cache,
            f"{start.ready_s:.1f} s",
            f"{start.load_s:.1f} s",
            f"{start.warm_up_s:.1f} s",
            f"{start.rest_s:.1f} s",
            f"{start.cpu_s:.0f} s",
            f"{start.disk_bytes / 1e9:.2f} GB",
            f"{start.peak_bytes / 1e9:.1f} GB",
            f"{statistics.median(self.reads_s[cache]):.1f} s",
            f"{self.ratio(cache):.2f}",
        )
        return f"| {' | '.join(cells)} |"

    def _median(self, cache: str) -> _Start:
        return sorted(self.starts[cache], key=lambda start: start.ready_s)[len(self.starts[cache]) // 2]


_HEAD = (
    *("page cache", "ready after", "load", "warm-up", "rest", "CPU time"),
    *("read from disk", "peak memory", "files read once", "ratio"),
)


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=FOLDER, help="the model's folder (default: make full-size's)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    model = options.model.resolve()
    paths = files_to_read(model)
    _compile()
    results = _Results()
    for number in range(options.rounds):
        for cache in results.starts:
            print(f"round {number + 1} of {options.rounds}, {cache} page cache", file=sys.stderr, flush=True)
            results.measure(model, paths, cache)
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"weights: {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB")
    print("pictures: " + ", ".join(f"{mode} {seconds:.1f} s" for mode, seconds in results.pictures_s.items()))
    print(f"| {' | '.join(_HEAD)} |")
    print(f"| {' | '.join(['---'] * len(_HEAD))} |")
    for cache in results.starts:
        print(results.row(cache))
    return 0 if results.ratio("cold") <= _MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
