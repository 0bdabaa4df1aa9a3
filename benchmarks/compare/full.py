"""The full scope: a model of SDXL-Turbo's size. One contestant runs at a time, because two do not fit into memory."""

import argparse
import asyncio
import io
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.pipelines.checkpoint import count_parameters
from benchmarks.compare.environments import InstallError, versions
from benchmarks.compare.meters import PeakMemory, Stopwatch, start_bare
from benchmarks.compare.preparation import CACHE, convert, environment_of, run, say
from benchmarks.compare.results import FullResults, Measurement, Peak, Start
from benchmarks.full_size import FOLDER, tiny_vae_beside
from benchmarks.support import process_tree
from benchmarks.support.contestants import (
    Contestant,
    Running,
    RunningServer,
    StartError,
    environment,
    interpreter,
    start,
)
from benchmarks.support.http_client import Connection
from benchmarks.support.load import Outcome, closed_loop
from benchmarks.support.pictures import Edit, Picture, Prompts, Supply, decode

OURS, TINY, INT8, PLAIN, OPENVINO, OPENVINO_INT8 = FULL_KEYS = (
    "ours",
    "ours-tiny-vae",
    "ours-int8",
    "plain",
    "openvino",
    "openvino-int8",
)

_OK = 200
_LEAST_DEVIATION = 10
"""A picture's channels deviate by more than this, of 255. A flat picture is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One closed loop with fresh prompts. Loops with several clients take long, so they are in the first round only.

    Attributes:
        key: The cell's name in the results.
        title: The cell's name for readers.
        side: Width and height in pixels.
        clients: The number of clients. While one call runs, at most half of them have their pictures in it.
        warm: Requests before the measurement.
        pictures: Measured requests.
        edits: Whether requests are image to image.
        everyone: Whether all contestants are measured. Otherwise only the service is.
    """

    key: str
    title: str
    side: int
    clients: int = 1
    warm: int
    pictures: int
    edits: bool = False
    everyone: bool = False


TXT2IMG = Cell(key="txt2img", title="512 px", side=512, warm=1, pictures=3, everyone=True)
IMG2IMG = Cell(key="img2img", title="img2img, 512 px", side=512, warm=1, pictures=3, edits=True)
# The service tries batches of 2, 4 and 8 one after another, and needs two calls of each (app/pipelines/batch_sizes.py).
FOUR = Cell(key="512-8", title="512 px, four waiting", side=512, clients=8, warm=16, pictures=12)
SMALL = Cell(key="256-1", title="256 px", side=256, warm=1, pictures=6)
EIGHT = Cell(key="256-16", title="256 px, eight waiting", side=256, clients=16, warm=32, pictures=24)
CELLS = (TXT2IMG, IMG2IMG, FOUR, SMALL, EIGHT)


def contestants(model: Path, cores: int) -> tuple[Contestant, ...]:
    """Return the contestants of the full scope: each with all cores, and in bf16 if it can be told so."""
    common = _settings(cores)

    def ours(key: str, title: str, **settings: str) -> Contestant:
        patient = {"TURBO_DEADLINE_S": "600"}  # the queues of the crowded cells may outlast the default
        command = ("-m", "app", "serve")
        return Contestant(key=key, title=title, command=command, path="/txt2img", settings=common | patient | settings)

    def openvino(key: str, title: str, folder: Path) -> Contestant:
        return Contestant(
            key=key,
            title=title,
            peer="openvino_genai",
            command=("{peer}/worker.py",),
            settings=common | {"BENCH_MODEL_OPENVINO": str(folder)},
            like_service=False,
            serves=False,
        )

    plain = Contestant(
        key=PLAIN, title="plain FastAPI, bf16", peer="plain", command=("{peer}/server.py",), settings=common
    )
    exported, int8 = _exported(model)
    return (
        ours(OURS, "this service"),
        ours(TINY, "this service, VAE of TAESDXL's shape", TURBO_VAE=str(tiny_vae_beside(model))),
        ours(INT8, "this service, int8", TURBO_DTYPE="int8"),
        plain,
        openvino(OPENVINO, "OpenVINO GenAI, no server", exported),
        openvino(OPENVINO_INT8, "OpenVINO GenAI, int8 weights, no server", int8),
    )


def _settings(cores: int) -> dict[str, str]:
    threads = str(cores)
    return {"BENCH_DTYPE": "bfloat16", "MKL_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}


def _exported(model: Path) -> tuple[Path, Path]:
    """Return the folders of the model in OpenVINO's format: with fp16 weights, and with int8 weights."""
    return CACHE / f"{model.name}-openvino", CACHE / f"{model.name}-openvino-int8"


class FullComparison:
    """One run of the full scope."""

    def __init__(self, options: argparse.Namespace, results: FullResults) -> None:
        self._nano: bool = options.nano
        self._model = CACHE / "full-size-nano" if self._nano else FOLDER
        self._cores = len(os.sched_getaffinity(0))
        wanted = options.only.split(",")
        self._contestants = [found for found in contestants(self._model, self._cores) if found.key in wanted]
        self._rounds: int = options.rounds
        self._share: float = options.share
        self._results = results
        self._pythons: dict[str, Path] = {}
        self._supplies = {contestant.key: Supply() for contestant in self._contestants}
        self._logs = CACHE / "logs"

    def run(self) -> None:
        self._prepare()
        for number in range(self._rounds):
            say(f"round {number + 1}: bare pipeline")
            self._results.starts.append(start_bare(environment(self._model, _settings(self._cores))))
            for contestant in list(self._contestants):
                say(f"round {number + 1}: {contestant.title}")
                try:
                    self._measure_contestant(contestant, number)
                except StartError as error:
                    self._give_up(contestant, error)

    def _prepare(self) -> None:
        """Make the models and environments that are missing."""
        say("building the model if it is missing")
        run(
            [
                str(interpreter()),
                "-m",
                "benchmarks.full_size",
                "--folder",
                str(self._model),
                *(["--nano"] if self._nano else []),
            ],
            environment(self._model, {}),
        )
        exported, int8 = _exported(self._model)
        for contestant in list(self._contestants):
            try:
                self._pythons[contestant.key] = python = environment_of(contestant)
                if not contestant.serves:
                    convert(python, "export.py", self._model, exported, "fp16")
                if contestant.key == OPENVINO_INT8:
                    convert(python, "quantize.py", exported, int8)
            except (InstallError, subprocess.CalledProcessError) as error:
                self._give_up(contestant, error)
            else:
                self._results.versions[contestant.key] = versions(python)

    def _give_up(self, contestant: Contestant, error: Exception) -> None:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = (str(output).strip().splitlines() or ["no output"])[-1]
        say(f"{contestant.title}: not measured: {reason}")
        self._results.not_measured[contestant.key] = reason
        self._contestants.remove(contestant)

    def _measure_contestant(self, contestant: Contestant, number: int) -> None:
        """Start one contestant, measure its cells, and stop it.

        Raises:
            StartError: The contestant does not start, or ends before it has answered.
        """
        running = start(contestant, self._pythons[contestant.key], self._model, self._logs)
        try:
            self._results.starts.append(
                Start(
                    server=contestant.key,
                    ready_s=running.ready_s,
                    first_picture_s=running.first_picture_s,
                    cpu_s=running.start_cpu_s,
                )
            )
            if contestant.key == OURS and isinstance(running, RunningServer):
                dtype = asyncio.run(_dtype(running.port))
                self._results.options["dtype of the service"] = dtype
                self._results.weights_bytes = _weights_bytes(self._model, dtype)
            under_load_bytes = 0
            for cell in CELLS:
                if cell.everyone or (contestant.key == OURS and (cell.clients == 1 or number == 0)):
                    with PeakMemory(running.pid) as memory:
                        self._ask(contestant, running, cell, self._part_of(cell.warm))
                    under_load_bytes = max(under_load_bytes, memory.peak_bytes)
                    self._measure(contestant, running, cell, number)
            self._results.peaks.append(
                Peak(
                    server=contestant.key,
                    under_load_bytes=under_load_bytes,
                    since_start_bytes=process_tree.peak_rss_bytes(running.pid),
                )
            )
        finally:
            running.stop()

    def _measure(self, contestant: Contestant, running: Running, cell: Cell, number: int) -> None:
        with Stopwatch(running.pid) as took:
            outcomes = self._ask(contestant, running, cell, self._part_of(cell.pictures))
        bad = [reason for outcome in outcomes if contestant.serves and (reason := _fault(outcome))]
        images = len(outcomes) - len(bad)
        self._results.measurements.append(
            Measurement(
                server=contestant.key,
                scenario=cell.key,
                round=number,
                images=images,
                cpu_s=round(took.cpu_s, 3),
                wall_s=round(took.wall_s, 3),
                others_cpu_s=round(took.others_cpu_s, 3),
                latencies_s=[round(outcome.latency_s, 4) for outcome in outcomes],
                bad=bad,
            )
        )
        each = f"{took.cpu_s / images:.2f} CPU-s per image" if images else "no image"
        say(f"round {number + 1}, {cell.title}: {contestant.key}: {each}, {len(bad)} bad")

    def _part_of(self, pictures: int) -> int:
        return max(1, round(pictures * self._share))

    def _ask(self, contestant: Contestant, running: Running, cell: Cell, count: int) -> list[Outcome]:
        pictures = self._supplies[contestant.key].take(count, cell.side, Prompts.FRESH)
        if not cell.edits:
            return running.ask(pictures, clients=cell.clients)
        assert isinstance(running, RunningServer)
        edits = [Edit(picture.side, picture.prompts, picture.number, _upload(picture)) for picture in pictures]
        return asyncio.run(closed_loop(running.port, "/img2img", edits, clients=cell.clients))


def _upload(picture: Picture) -> bytes:
    """Return a PNG: coarse noise, enlarged."""
    noise = np.random.default_rng(picture.number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((picture.side, picture.side)).save(file, "PNG")
    return file.getvalue()


def _fault(outcome: Outcome) -> str | None:
    """Return what is wrong with an answer, if anything. The right pixels are not known: all contestants round."""
    if outcome.status != _OK:
        return f"status {outcome.status}: {outcome.body[:80]!r}"
    try:
        pixels = decode(outcome.body)
    except OSError as error:
        return f"not a PNG: {error}"
    side = outcome.picture.side
    if pixels.shape != (side, side, 3):
        return f"shape {pixels.shape} instead of side {side}"
    return None if pixels.std() > _LEAST_DEVIATION else "a flat picture"


async def _dtype(port: int) -> str:
    async with Connection(port) as connection:
        dtype: str = json.loads((await connection.get("/healthz/ready")).body)["dtype"]
    return dtype


def _weights_bytes(model: Path, dtype: str) -> int:
    """Return the size of the model's parameters in a number format."""
    itemsize: int = getattr(torch, dtype).itemsize
    parts = ("text_encoder", "text_encoder_2", "unet", "vae")
    return itemsize * sum(count_parameters(model / part) for part in parts)


def titles(model: Path = FOLDER) -> dict[str, str]:
    """Return the contestants' names for readers."""
    return {contestant.key: contestant.title for contestant in contestants(model, 1)}
