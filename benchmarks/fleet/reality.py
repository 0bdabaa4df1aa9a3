"""The simulation held against real processes: the same arrivals, behind HAProxy with deploy/haproxy's configuration."""

import asyncio
import contextlib
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.compare.results import quantile
from benchmarks.fleet.arrivals import arrivals, steady, with_burst
from benchmarks.fleet.cache import OK
from benchmarks.fleet.devices import Kind, fake
from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.replica import FULL
from benchmarks.scale_out import PROCESSES, Haproxy, behind_haproxy
from benchmarks.soak.service import Service
from benchmarks.support import machine
from benchmarks.support.http_client import Connection
from benchmarks.support.load import timed_loop
from benchmarks.support.pictures import Prompts, Supply

SIDE, SECONDS = 64, 0.25
RESULTS = Path(__file__).parent / "reality.json"
TOLERANCE = 0.10
_ALONE, _SAME_S = 20, 0.03


Answers = list[tuple[float, int, float]]
"""For each request its moment, its status, and its latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What clients saw: answered pictures a second, seconds of those answers, and the share of each other status."""

    per_second: float
    p50_s: float
    p99_s: float
    refused: float
    other: float


@dataclass(frozen=True, slots=True)
class Device:
    """What was measured of one request alone: seconds of the device call, and of everything else."""

    call_s: float
    answer_s: float

    @property
    def kind(self) -> Kind:
        return fake(self.call_s)


def loads() -> dict[str, npt.NDArray[np.float64]]:
    """Return the moments of the requests: at four fifths of the capacity, and a burst of ten times a lower rate."""
    capacity = PROCESSES / SECONDS
    burst = with_burst(steady(0.35 * capacity), at_s=20, lasts_s=10, times=10)
    return {
        "steady, 80 % of the capacity": arrivals(steady(0.8 * capacity), lasts_s=130, seed=1),
        "burst, 35 % and for 10 s ten times that": arrivals(burst, lasts_s=60, seed=2),
    }


def figures(answers: Answers) -> Figures:
    """Return the figures of answers."""
    served = sorted(latency_s for _, status, latency_s in answers if status == OK)
    ends = max(at + latency_s for at, _, latency_s in answers)
    refused = sum(status == FULL for _, status, _ in answers)
    return Figures(
        per_second=len(served) / (ends - answers[0][0]),
        p50_s=quantile(served, 0.5),
        p99_s=quantile(served, 0.99),
        refused=refused / len(answers),
        other=(len(answers) - len(served) - refused) / len(answers),
    )


def simulated(device: Device, moments: npt.NDArray[np.float64]) -> Answers:
    """Return what the simulation says."""
    fleet = Fleet([device.kind], PROCESSES, answer_s=device.answer_s)
    fleet.offer(moments)
    fleet.run()
    return sorted((one.at_s, one.status, one.latency_s) for one in fleet.outcomes)


def processes() -> contextlib.AbstractAsyncContextManager[tuple[list[Service], Haproxy]]:
    """Run the service's processes with the fake pipeline, and HAProxy."""
    return behind_haproxy({"TURBO_MODEL": f"fake:{SECONDS}", "TURBO_WARM_UP_SIZES": f"{SIDE}x{SIDE}"})


async def alone(port: int) -> Device:
    """Measure single requests, one after another. `Server-Timing` names the milliseconds of the device call."""
    calls_s, others_s = [], []
    async with Connection(port) as connection:
        for picture in Supply().take(_ALONE, SIDE, Prompts.FRESH):
            began = asyncio.get_running_loop().time()
            answer = await connection.post("/txt2img", picture.body)
            took_s = asyncio.get_running_loop().time() - began
            timing = re.search(r"inference;dur=([\d.]+)", answer.headers["server-timing"])
            assert answer.status == OK
            assert timing
            calls_s.append(float(timing[1]) / 1000)
            others_s.append(took_s - calls_s[-1])
    return Device(statistics.median(calls_s), statistics.median(others_s))


async def measured() -> tuple[Device, dict[str, Answers]]:
    """Send the loads to real processes."""
    found, supply = {}, Supply()
    async with processes() as (_, proxy):
        device = await alone(proxy.port)
        for name, moments in loads().items():
            pictures = supply.take(len(moments), SIDE, Prompts.FRESH)
            outcomes = await timed_loop(proxy.port, "/txt2img", pictures, moments.tolist())
            found[name] = [
                (round(at, 4), one.status, round(one.latency_s, 4))
                for at, one in zip(moments.tolist(), outcomes, strict=True)
            ]
    return device, found


def off(real: float, ours: float) -> float:
    """Return how far the simulation is off, relative to the reality; 0 if both are 0."""
    return 0.0 if real == ours else abs(ours - real) / real if real else float("inf")


def table(device: Device, found: dict[str, Answers]) -> Iterator[str]:
    """Yield the lines of the comparison. Requests end alike if status and latency are the same."""
    yield "| load | figure | real processes | simulation | off |"
    yield "| --- | --- | --- | --- | --- |"
    names = {
        "per_second": ("pictures/s", "{:.2f}"),
        "p50_s": ("p50", "{:.2f} s"),
        "p99_s": ("p99", "{:.2f} s"),
        "refused": ("share of 429", "{:.1%}"),
        "other": ("other errors", "{:.1%}"),
    }
    for load, moments in loads().items():
        answers = simulated(device, moments)
        real, ours = asdict(figures(found[load])), asdict(figures(answers))
        for key, (name, form) in names.items():
            wrong = off(real[key], ours[key])
            mark = " (outside of 10 %)" if wrong > TOLERANCE else ""
            yield f"| {load} | {name} | {form.format(real[key])} | {form.format(ours[key])} | {wrong:.1%}{mark} |"
        pairs = list(zip(found[load], answers, strict=True))
        same = sum(one[1] == other[1] and abs(one[2] - other[2]) < _SAME_S for one, other in pairs)
        yield f"| {load} | requests, and those that end alike within 30 ms | {len(pairs)} | {same} | |"


def main() -> int:
    """Measure, write the results, and print the table. Return 1 if a figure is off by more than 10 %."""
    device, found = asyncio.run(measured())
    results = {"machine": machine.describe(), "device": asdict(device), "real": found}
    RESULTS.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return show()


def show() -> int:
    """Print the table from the written results, with what the simulation says now."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    device = Device(**results["device"])
    lines = list(table(device, results["real"]))
    print(", ".join(f"{name}: {value}" for name, value in results["machine"].items()))
    print(f"Alone, a request takes {device.call_s:.4f} s on the device and {device.answer_s:.4f} s elsewhere.\n")
    print("\n".join(lines))
    return int(any("outside" in line for line in lines))
