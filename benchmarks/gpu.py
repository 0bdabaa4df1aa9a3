"""Measures the service on one CUDA GPU: full-size SDXL with random weights, over HTTP and stage by stage.

    python -m benchmarks.gpu [--folder FOLDER] [--out FILE] [--parts http-512,stages-512] [--nano]

The model has the shapes of stabilityai/sdxl-turbo, so a call takes as long as with the real weights. Its pictures mean
nothing. Each part runs in its own process, and its figures are kept in the JSON file, so parts can be measured one by
one. `--nano` runs the same steps with a small model on the CPU, to test the script. Its figures do not apply to a GPU.
"""

import argparse
import http.client
import importlib.metadata
import json
import multiprocessing
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import FOLDER, FULL, NANO, build_missing, tiny_vae_beside
from benchmarks.support.contestants import ROOT
from benchmarks.support.pictures import Edit, MaskedEdit, Picture, Prompts, Supply
from benchmarks.support.ports import free_port

_BUILD = ROOT / "build" / "bench"
_OK = 200
_POLL_S = 0.2
_STOP_LIMIT_S = 90

_H100_TFLOP_PER_S = 800
"""The speed of an H100 in large fp16 matrix products; its data sheet says 989."""

_TFLOP = {"unet": 1.59, "vae decode": 2.51}
"""Work for one picture of 512x512 in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One measured process: the service over HTTP, or `bench`.

    Attributes:
        key: The part's name on the command line and in the JSON file.
        title: The part's name for readers.
        side: Width and height in pixels.
        max_batch: The largest batch that the service warms up.
        tiny_vae: Whether the tiny VAE replaces the model's own.
        stages: Whether the process is `bench` instead of the service.
        crowd: Whether concurrent clients, image to image and inpainting are measured too.
        stock: Whether the networks are diffusers' own, instead of those with fewer operations.
        compiled: Whether the networks are compiled into CUDA graphs.
    """

    key: str
    title: str
    side: int
    max_batch: int
    tiny_vae: bool = False
    stages: bool = False
    crowd: bool = False
    stock: bool = False
    compiled: bool = True

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.support.stock_networks" if self.stock else "app"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The model, and how many requests are measured."""

    model: Path
    tiny_vae: Path
    nano: bool
    warm: int
    requests: int
    clients: int
    requests_per_client: int
    start_limit_s: float


def _parts(*, nano: bool) -> list[Part]:
    small, large, batch = (128, 256, 2) if nano else (512, 1024, 8)
    return [
        Part(key="http-512", title="own VAE", side=small, max_batch=batch, crowd=True),
        Part(key="stages-512", title="own VAE", side=small, max_batch=1 if nano else batch, stages=True),
        Part(key="stages-512-stock", title="own VAE, stock networks", side=small, max_batch=1, stages=True, stock=True),
        Part(key="eager-512", title="own VAE, no graphs", side=small, max_batch=1, stages=True, compiled=False),
        Part(
            key="eager-512-stock",
            title="own VAE, no graphs, stock networks",
            side=small,
            max_batch=1,
            stages=True,
            stock=True,
            compiled=False,
        ),
        Part(key="http-tiny", title="tiny VAE", side=small, max_batch=batch, tiny_vae=True, crowd=True),
        Part(key="stages-tiny", title="tiny VAE", side=small, max_batch=1, tiny_vae=True, stages=True),
        Part(key="http-1024", title="own VAE", side=large, max_batch=1),
        Part(key="stages-1024", title="own VAE", side=large, max_batch=1, stages=True),
    ]


def main(arguments: Sequence[str]) -> None:
    """Build missing models, measure the parts, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="the model; built if missing (default build/full-size/sdxl-turbo)")
    parser.add_argument("--out", type=Path, default=_BUILD / "gpu.json", help="the figures (default %(default)s)")
    parser.add_argument("--parts", help="parts, with commas between (default all); others keep their figures")
    parser.add_argument("--requests", type=int, default=100, help="timed requests of one client")
    parser.add_argument("--start-limit-s", type=float, default=1800, help="time limit for start and compilation")
    parser.add_argument("--nano", action="store_true", help="test the script: a small model on the CPU, few requests")
    options = parser.parse_args(arguments)
    every = _parts(nano=options.nano)
    wanted = set((options.parts or ",".join(part.key for part in every)).split(","))
    if unknown := wanted - {part.key for part in every}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(part.key for part in every)}")
    plan = _plan(options)
    out = options.out.with_stem(f"{options.out.stem}-nano") if plan.nano else options.out
    report = _open_report(out, _prepare(plan), nano=plan.nano)
    for part in every:
        if part.key in wanted:
            print(f"{part.key}: {part.title}, {part.side} px, up to {part.max_batch} at once", flush=True)
            report["parts"][part.key] = _stages(part, plan) if part.stages else _over_http(part, plan)
            _write(out, report)
    print("\n".join(_text(report)))
    print(f"written to {out}")


def _plan(options: argparse.Namespace) -> Plan:
    default = FOLDER.with_name(f"{FOLDER.name}-nano") if options.nano else FOLDER
    model: Path = (options.folder or default).resolve()
    return Plan(
        model=model,
        tiny_vae=tiny_vae_beside(model),
        nano=options.nano,
        warm=2 if options.nano else 10,
        requests=5 if options.nano else options.requests,
        clients=4 if options.nano else 16,
        requests_per_client=3 if options.nano else 40,
        start_limit_s=options.start_limit_s,
    )


# The model.


def _prepare(plan: Plan) -> str:
    """Build missing models in a separate process, whose end frees the GPU; return the device's name."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_build_missing, plan).result()


def _build_missing(plan: Plan) -> str:
    if not plan.nano and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU. --nano tests the script on the CPU.")
    device = torch.device("cpu" if plan.nano else "cuda")
    build_missing(plan.model, shapes=NANO if plan.nano else FULL, device=device)
    return "CPU" if plan.nano else torch.cuda.get_device_name(device)


# Processes.


def _environment(part: Part, plan: Plan) -> dict[str, str]:
    """Return the environment with this part's settings. The caller's `TURBO_` variables are left out."""
    settings = {
        "TURBO_MODEL": str(plan.model),
        "TURBO_DEVICE": "cpu" if plan.nano else "cuda",
        "TURBO_COMPILE": "on" if part.compiled and not plan.nano else "off",
        "TURBO_BATCHING": "fast",
        "TURBO_MAX_BATCH": str(part.max_batch),
        "TURBO_WARM_UP_SIZES": f"{part.side}x{part.side}",
        "TURBO_HANG_LIMIT_S": "3600",  # warm-up includes compilation
        "TURBO_LOG_FORMAT": "json",
    }
    if part.tiny_vae:
        settings["TURBO_VAE"] = str(plan.tiny_vae)
    elif not plan.nano:
        settings["TURBO_VAE_DTYPE"] = "bf16"
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("TURBO_")}
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(_BUILD / "inductor"),  # parts share compiled code
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **others,
        **settings,
    }


def _stages(part: Part, plan: Plan) -> dict[str, Any]:
    """Run `bench`, and derive the milliseconds of each stage in a call for one picture.

    `bench` measures the stages' shares in a call that waits for the device around each stage. The shares are applied to
    the median.
    """
    log = _log_file(part)
    with log.open("w") as stderr:
        done = subprocess.run(
            [*part.command, "bench", "--json"],
            cwd=ROOT,
            env=_environment(part, plan),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"bench ended with {done.returncode}:\n{_end_of(log)}")
    report: dict[str, Any] = json.loads(done.stdout)
    alone = {
        f"{row['mode']}, {row['num_inference_steps']} steps": {
            "call": 1000 * row["p50_s"],
            **{name: 1000 * row["p50_s"] * share for name, share in row["stages"].items()},
        }
        for row in report["measurements"]
        if row["batch"] == 1
    }
    return {"title": part.title, "side": part.side, "stages_ms": alone, "bench": report}


@contextmanager
def _service(part: Part, plan: Plan) -> Iterator[tuple[int, float]]:
    """Run the service; yield its port and the seconds until it was ready."""
    port, log, began = free_port(), _log_file(part), time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*part.command, "serve"],
            cwd=ROOT,
            env=_environment(part, plan) | {"TURBO_PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - began > plan.start_limit_s:
                raise SystemExit(f"The service did not start:\n{_end_of(log)}")
            time.sleep(_POLL_S)
        yield port, time.monotonic() - began
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == _OK
    except OSError:
        return False
    finally:
        connection.close()


def _log_file(part: Part) -> Path:
    file = _BUILD / "logs" / f"gpu-{part.key}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


# HTTP.


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request."""

    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture, its wall-clock time, and the time of each stage as the service reports it."""

    body: bytes
    wall_ms: float
    stages_ms: Mapping[str, float]


def _over_http(part: Part, plan: Plan) -> dict[str, Any]:
    """Measure the service: one client with one prompt and with fresh prompts, then concurrent clients."""
    supply = Supply()
    result: dict[str, Any] = {"title": part.title, "side": part.side}

    def texts(count: int, prompts: Prompts) -> list[Ask]:
        return [_from_text(picture) for picture in supply.take(count, part.side, prompts)]

    with _service(part, plan) as (port, ready_s):
        result["ready_s"] = ready_s
        for prompts in Prompts:
            _closed_loop(port, texts(plan.warm, prompts), clients=1)
            result[f"one client, {prompts} prompts"] = _figures(
                *_closed_loop(port, texts(plan.requests, prompts), clients=1)
            )
        if not part.crowd:
            return result
        (upload,), _ = _closed_loop(port, texts(1, Prompts.KEPT), clients=1)
        pictures = supply.take(plan.warm + plan.requests, part.side, Prompts.KEPT)
        asks = [_from_picture(picture, upload.body) for picture in pictures]
        _closed_loop(port, asks[: plan.warm], clients=1)
        result["img2img, one client, kept prompts"] = _figures(*_closed_loop(port, asks[plan.warm :], clients=1))
        pictures = supply.take(plan.warm + plan.requests, part.side, Prompts.KEPT)
        asks = [_with_mask(picture, upload.body) for picture in pictures]
        _closed_loop(port, asks[: plan.warm], clients=1)
        result["inpaint, one client, kept prompts"] = _figures(*_closed_loop(port, asks[plan.warm :], clients=1))
        for prompts in Prompts:
            # A CUDA graph is recorded at the second call of a batch size, so each size must occur before measuring.
            _closed_loop(port, texts(plan.warm * plan.clients, prompts), clients=plan.clients)
            asks = texts(plan.requests_per_client * plan.clients, prompts)
            result[f"{plan.clients} clients, {prompts} prompts"] = _figures(
                *_closed_loop(port, asks, clients=plan.clients)
            )
    return result


def _from_text(picture: Picture) -> Ask:
    return Ask("/txt2img", "application/json", picture.body)


def _from_picture(picture: Picture, png: bytes) -> Ask:
    edit = Edit(picture.side, picture.prompts, picture.number, png)
    return Ask("/img2img", edit.content_type, edit.body)


def _with_mask(picture: Picture, png: bytes) -> Ask:
    edit = MaskedEdit(picture.side, picture.prompts, picture.number, png)
    return Ask("/inpaint", edit.content_type, edit.body)


def _closed_loop(port: int, asks: Sequence[Ask], *, clients: int) -> tuple[list[Answer], float]:
    """Send the requests from `clients` clients without pauses; return the answers and the seconds.

    Raises:
        RuntimeError: An answer is not a picture.
    """
    waiting: queue.SimpleQueue[Ask] = queue.SimpleQueue()
    for ask in asks:
        waiting.put(ask)
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        loops = [threads.submit(_client, port, waiting) for _ in range(clients)]
    wall_s = time.perf_counter() - began
    return [answer for loop in loops for answer in loop.result()], wall_s


def _client(port: int, waiting: "queue.SimpleQueue[Ask]") -> list[Answer]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    answers: list[Answer] = []
    while True:
        try:
            ask = waiting.get_nowait()
        except queue.Empty:
            connection.close()
            return answers
        began = time.perf_counter()
        headers = {"Content-Type": ask.content_type, "Accept": "image/png"}
        connection.request("POST", ask.path, ask.body, headers)
        response = connection.getresponse()
        body = response.read()
        wall_ms = 1000 * (time.perf_counter() - began)
        if response.status != _OK:
            raise RuntimeError(f"{ask.path} returned {response.status}: {body[:300]!r}")
        timing = re.findall(r"(\w+);dur=([\d.]+)", response.getheader("Server-Timing", ""))
        answers.append(Answer(body, wall_ms, {name: float(ms) for name, ms in timing}))


def _figures(answers: Sequence[Answer], wall_s: float) -> dict[str, Any]:
    """Return the figures of one loop. `outside_ms` is the median latency minus inference and queue."""
    walls = [answer.wall_ms for answer in answers]
    names = sorted({name for answer in answers for name in answer.stages_ms})
    stages = {name: _median(answer.stages_ms.get(name, 0.0) for answer in answers) for name in names}
    return {
        "requests": len(answers),
        "p50_ms": _median(walls),
        "p95_ms": float(np.percentile(walls, 95)),
        "images_per_s": len(answers) / wall_s,
        "stages_p50_ms": stages,
        "outside_ms": _median(walls) - stages["inference"] - stages["queue"],
        "png_bytes": int(_median(len(answer.body) for answer in answers)),
    }


def _median(values: Any) -> float:
    return float(np.median(list(values)))


# The report.


def _open_report(out: Path, device: str, *, nano: bool) -> dict[str, Any]:
    """Return the report. It keeps earlier parts if the device and the versions are the same."""
    names = ("torch", "triton", "diffusers", "transformers", "fastapi", "uvicorn")
    installed = {name: version for name in names if (version := _version(name))}
    versions = {"python": sys.version.partition(" ")[0], "cuda": str(torch.version.cuda), **installed}
    report: dict[str, Any] = {"nano": nano, "gpu": device, "versions": versions, "parts": {}}
    try:
        earlier = json.loads(out.read_text(encoding="utf-8"))
    except FileNotFoundError:
        earlier = {}
    if all(earlier.get(name) == report[name] for name in ("nano", "gpu", "versions")):
        report["parts"] = earlier["parts"]
    return report


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write(out: Path, report: dict[str, Any]) -> None:
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2), encoding="utf-8")


def _text(report: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield f"\n{report['gpu']}; {versions}"
    if report["nano"]:
        yield "A small model on the CPU: this run only tests the script, and has no targets."
    for key, part in report["parts"].items():
        yield f"\n{key}: {part['title']}, {part['side']} px"
        yield from _stage_lines(part["stages_ms"]) if "stages_ms" in part else _loop_lines(part)
    if not report["nano"]:
        yield from _target_lines(report["parts"])


def _stage_lines(stages_ms: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for name, stages in stages_ms.items():
        yield f"  {name:<36} " + ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in stages.items())


def _loop_lines(part: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {'ready after':<36} {part['ready_s']:.1f} s"
    for name, loop in part.items():
        if isinstance(loop, dict):
            stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in loop["stages_p50_ms"].items())
            yield (
                f"  {name:<36} p50 {loop['p50_ms']:7.1f} ms  p95 {loop['p95_ms']:7.1f} ms  "
                f"{loop['images_per_s']:6.1f} images/s  outside {loop['outside_ms']:5.1f} ms  "
                f"({stages}; PNG {loop['png_bytes'] / 1024:.0f} KiB)"
            )


def _target_lines(parts: Mapping[str, Any]) -> Iterator[str]:
    """Compare the figures with the targets for an H100 and with the limit of its arithmetic."""
    yield f"\n{'target (H100)':<44} {'measured':>10} {'target':>10} {'stretch':>10}"
    one, img2img = "one client, kept prompts", "img2img, one client, kept prompts"
    many = "16 clients, kept prompts"
    text_ms = _find(parts, "http-512", one, "p50_ms")
    rows: list[tuple[str, float | None, float, float | None]] = [
        ("512 px, one client, p50 ms", text_ms, 20, 14),
        ("512 px, 16 clients, images/s", _find(parts, "http-512", many, "images_per_s"), -85, None),
        ("512 px, tiny VAE, one client, p50 ms", _find(parts, "http-tiny", one, "p50_ms"), 13, None),
        ("512 px, tiny VAE, 16 clients, images/s", _find(parts, "http-tiny", many, "images_per_s"), -200, None),
        ("1024 px, one client, p50 ms", _find(parts, "http-1024", one, "p50_ms"), 65, None),
        ("512 px, outside of the device, ms", _find(parts, "http-512", one, "outside_ms"), 4, None),
        ("512 px, UNet, ms", _find(parts, "stages-512", "stages_ms", "txt2img, 1 steps", "unet"), 8, None),
        ("512 px, VAE decode, ms", _find(parts, "stages-512", "stages_ms", "txt2img, 1 steps", "vae decode"), 8, None),
    ]
    if text_ms is not None:
        rows.append(("512 px, img2img, p50 ms", _find(parts, "http-512", img2img, "p50_ms"), text_ms + 5, None))
    for name, measured, target, stretch in rows:
        # A negative target is a lower bound.
        shown = "-" if measured is None else f"{measured:.1f}"
        met = "" if measured is None else "met" if (-measured if target < 0 else measured) <= target else "missed"
        bound = f"{'>=' if target < 0 else '<='} {abs(target):.1f}"
        yield f"{name:<44} {shown:>10} {bound:>10} {'' if stretch is None else f'<= {stretch:.1f}':>10}  {met}"
    for kind in ("eager", "stages"):
        old, new = (
            _find(parts, key, "stages_ms", "txt2img, 1 steps", "call") for key in (f"{kind}-512-stock", f"{kind}-512")
        )
        if old is not None and new is not None:
            yield f"{kind}, 512 px: {new:.2f} ms with fewer operations, {old:.2f} ms stock, ratio {new / old:.2f}"
    for stage, tflop in _TFLOP.items():
        least_ms = 1000 * tflop / _H100_TFLOP_PER_S
        line = f"roofline {stage}: {tflop} TFLOP / {_H100_TFLOP_PER_S} TFLOP/s = {least_ms:.1f} ms"
        measured = _find(parts, "stages-512", "stages_ms", "txt2img, 1 steps", stage)
        yield line if measured is None else f"{line}; measured {measured:.1f} ms, {measured / least_ms:.1f} times that"


def _find(parts: Mapping[str, Any], *names: str) -> float | None:
    """Return the figure at this path, or None if it was not measured."""
    found: Any = parts
    for name in names:
        if name not in found:
            return None
        found = found[name]
    return float(found)


if __name__ == "__main__":
    main(sys.argv[1:])
