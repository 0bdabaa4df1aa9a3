"""Compares requests with a WebSocket for pages whose prompt or canvas changes all the time.

    .venv/bin/python -m benchmarks.live [--models fake:0.02 fake:0.1 demo] [--seconds 2.5] [--rounds 5]

A page in headless Chromium (`client.js`) follows the states, by requests to the service's own routes or over the
prototype's WebSocket (`server.py`), in the same process of the service. The ways alternate within each round. The
figures are medians of the rounds; ratios are medians of the ratios within each round. Bytes are those of the service's
TCP connections as the kernel counts them (ss), with all headers of HTTP and of frames, without those of TCP and IP, for
each answered state.

A WebSocket would be worth it with 1.2 times the pictures per second of one request in flight, or with half its
overhead, which is the latency without the device call. The ways differ in what overlaps too, so two requests in flight
tell how much of a gain is due to that.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from benchmarks.compare.results import quantile
from benchmarks.support import machine, process_tree
from benchmarks.support.browser import chromium
from benchmarks.support.contestants import ROOT, Contestant, RunningServer, interpreter, start

_RESULTS = ROOT / "build" / "bench" / "live"
_WARM_UP_S = 0.5

_WAYS: Mapping[str, Mapping[str, Any]] = {
    "1 request": {"socket": "", "inFlight": 1},
    "2 requests": {"socket": "", "inFlight": 2},
    "socket, 1 state": {"socket": "lockstep"},
    "socket, pushed": {"socket": "push"},
    "socket, asked": {"socket": "asked"},
}
"""How states are sent: the newest when a picture is decoded, with one or two in flight; pushed at each change, and the
newest is begun when the last device call has ended; or asked for by the service when the last device call has ended."""

_CASES = [(mode, accept) for mode in ("txt2img", "img2img") for accept in ("image/png", "image/jpeg")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One way's figures in one round.

    `per_second` is that from the first picture shown to the last, and `busy` the share of that time in device calls.
    `stages_ms` is the service's own part of the overhead: decoding, the queue and encoding. `age_ms` is the age of a
    state when its picture is shown, and `screen_age_ms` the mean age of what is on the screen.
    """

    per_second: float
    busy: float
    latency_ms: float
    latency_p95_ms: float
    device_ms: float
    overhead_ms: float
    stages_ms: float
    age_ms: float
    screen_age_ms: float
    sent_kb: float
    received_kb: float
    cpu_ms: float


class _Service:
    """The service's process, and what the kernel counts of it."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self.port = port

    def cpu_s(self) -> float:
        return process_tree.cpu_seconds(self._pid)

    def transferred(self) -> dict[str, tuple[int, int]]:
        """Return the bytes received and sent by each open connection, by the client's address."""
        command = [shutil.which("ss") or sys.exit("ss is not installed."), "-tinHO", "state", "established"]
        lines = subprocess.check_output([*command, f"sport = :{self.port}"], text=True).splitlines()
        return {line.split()[3]: (_counter("bytes_received", line), _counter("bytes_acked", line)) for line in lines}


def _counter(name: str, line: str) -> int:
    match = re.search(rf"\b{name}:(\d+)", line)
    return int(match[1]) if match else 0


@contextmanager
def _service(model: str) -> Iterator[_Service]:
    """Run the service with the prototype, until the end of the block."""
    prototype = Contestant(
        key=model,
        title="the service with a prototype of a WebSocket",
        command=("-m", "benchmarks.live.server"),
        path="/txt2img",
        settings={"TURBO_MCP": "false"},
    )
    running = start(prototype, interpreter(), Path(model), _RESULTS)
    assert isinstance(running, RunningServer)
    try:
        yield _Service(running.pid, running.port)
    finally:
        running.stop()


@contextmanager
def _open_page(port: int) -> Iterator[Page]:
    """Open a browser on the service's origin, with the client's functions and canvases."""
    with chromium() as browser:
        page = browser.new_context(bypass_csp=True).new_page()
        page.goto(f"http://127.0.0.1:{port}/healthz/live")
        page.add_script_tag(content=(Path(__file__).parent / "client.js").read_text(encoding="utf-8"))
        sizes = page.evaluate("drawCanvases()")
        print(f"canvases: {statistics.mean(sizes) / 1000:.0f} kB as JPEG", file=sys.stderr)
        yield page


def _measure(page: Page, service: _Service, how: Mapping[str, Any], seconds: float) -> _Round:
    before, cpu_s = service.transferred(), service.cpu_s()
    run = page.evaluate("([how, seconds, warmUp]) => follow(how, seconds, warmUp)", [how, seconds, _WARM_UP_S])
    cpu_s = service.cpu_s() - cpu_s
    after = service.transferred()
    up, down = (
        sum(counted[way] - before.get(client, (0, 0))[way] for client, counted in after.items()) for way in (0, 1)
    )
    shown: list[dict[str, Any]] = run["shown"]
    latencies = [one["shown"] - one["sent"] for one in shown]
    device = [one["timings"]["inference"] for one in shown]
    answers = run["answers"]
    took_s = (shown[-1]["shown"] - shown[0]["shown"]) / 1000
    return _Round(
        per_second=(len(shown) - 1) / took_s,
        busy=sum(device[1:]) / 1000 / took_s,
        latency_ms=statistics.median(latencies),
        latency_p95_ms=quantile(latencies, 0.95),
        device_ms=statistics.median(device),
        overhead_ms=statistics.median(latency - spent for latency, spent in zip(latencies, device, strict=True)),
        stages_ms=statistics.median(sum(one["timings"].values()) - one["timings"]["inference"] for one in shown),
        age_ms=statistics.median(one["shown"] - one["made"] for one in shown),
        screen_age_ms=_screen_age_ms(shown),
        sent_kb=up / answers / 1000,
        received_kb=down / answers / 1000,
        cpu_ms=1000 * cpu_s / answers,
    )


def _screen_age_ms(shown: Sequence[Mapping[str, float]]) -> float:
    """Return the mean age of the state whose picture is on the screen, from the first picture to the last."""
    area = 0.0
    for one, following in itertools.pairwise(shown):
        took = following["shown"] - one["shown"]
        area += took * ((one["shown"] + following["shown"]) / 2 - one["made"])
    return area / (shown[-1]["shown"] - shown[0]["shown"])


def _others_s() -> float:
    """Return the CPU time of all processes but this one and its descendants."""
    return machine.busy_s() - process_tree.cpu_seconds(os.getpid())


_Rounds = dict[str, list[_Round]]


def _compare(model: str, seconds: float, rounds: int) -> dict[str, _Rounds]:
    """Return the rounds of each way, by case."""
    found: dict[str, _Rounds] = {}
    with _service(model) as service, _open_page(service.port) as page:
        for mode, accept in _CASES:
            case = f"{model}, {mode}, {accept.removeprefix('image/')}"
            by_way: _Rounds = {way: [] for way in _WAYS}
            others_s, began = _others_s(), time.perf_counter()
            for _ in range(rounds):
                for way, how in _WAYS.items():
                    by_way[way].append(_measure(page, service, {**how, "mode": mode, "accept": accept}, seconds))
            found[case] = by_way
            others = (_others_s() - others_s) / (time.perf_counter() - began)
            print(f"\n{case}; other processes used {others:.1f} cores\n")
            print(*_table(by_way), "", *_ratios(by_way), sep="\n", flush=True)
    return found


_COLUMNS: Mapping[str, str] = {
    "per_second": "pictures/s",
    "busy": "device busy",
    "latency_ms": "latency, ms",
    "latency_p95_ms": "p95",
    "device_ms": "device",
    "overhead_ms": "overhead",
    "stages_ms": "of it stages",
    "age_ms": "age when shown",
    "screen_age_ms": "age on screen",
    "sent_kb": "kB sent",
    "received_kb": "received",
    "cpu_ms": "service's CPU, ms",
}


def _table(by_way: _Rounds) -> Iterator[str]:
    yield "| way | " + " | ".join(_COLUMNS.values()) + " |"
    yield "| --- |" + " --- |" * len(_COLUMNS)
    for way, rounds in by_way.items():
        medians = (statistics.median(getattr(one, name) for one in rounds) for name in _COLUMNS)
        yield (
            f"| {way} | " + " | ".join(f"{figure:.2f}" if figure < 1 else f"{figure:.1f}" for figure in medians) + " |"
        )


def _ratios(by_way: _Rounds) -> Iterator[str]:
    """Compare each way with requests: pictures per second, overhead, and the age of what is on the screen."""
    yield "| way | over | pictures/s | overhead | age on screen |"
    yield "| --- | --- | --- | --- | --- |"
    for base in ("1 request", "2 requests"):
        for way, rounds in by_way.items():
            if way != base and (base == "1 request" or way.startswith("socket")):
                pairs = list(zip(rounds, by_way[base], strict=True))
                ratios = [
                    statistics.median(getattr(one, name) / getattr(other, name) for one, other in pairs)
                    for name in ("per_second", "overhead_ms", "screen_age_ms")
                ]
                yield f"| {way} | {base} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["fake:0.02", "fake:0.1", "demo"], help="values of TURBO_MODEL")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each way in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    options = parser.parse_args()
    _RESULTS.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    found: dict[str, _Rounds] = {}
    for model in options.models:
        found |= _compare(model, options.seconds, options.rounds)
    said = {
        case: {way: [asdict(one) for one in rounds] for way, rounds in ways.items()} for case, ways in found.items()
    }
    (_RESULTS / "results.json").write_text(json.dumps(said, indent=1), encoding="utf-8")


if __name__ == "__main__":
    _main()
