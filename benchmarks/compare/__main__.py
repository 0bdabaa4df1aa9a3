"""Measures the service and its peers side by side on this machine: one model, one run, one report.

    python -m benchmarks.compare [--quick] [--only ours,plain]

benchmarks/README.md explains the measurements.
"""

import argparse
import dataclasses
import datetime as dt
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.compare import plots, report
from benchmarks.compare.environments import InstallError, make_environment, versions
from benchmarks.compare.reactions import measure_reactions
from benchmarks.compare.results import SCENARIOS, Alone, Key, Measurement, Results, Scenario, Start
from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import (
    CONTESTANTS,
    DEFAULT,
    PEERS,
    ROOT,
    Contestant,
    Running,
    RunningServer,
    StartError,
    environment,
    interpreter,
    start,
)
from benchmarks.support.load import Outcome
from benchmarks.support.pictures import Prompts, References, Supply, Verdict, decode, difference

CACHE = ROOT / "build" / "bench"

_NEIGHBOURS = 8
_OPEN_PICTURES = 80
_LOAD = 0.7
_SIDES = (128, 512)


class _Comparison:
    """One run of the comparison."""

    def __init__(self, contestants: Sequence[Contestant], options: argparse.Namespace, results: Results) -> None:
        self._contestants = list(contestants)
        self._rounds: int = options.rounds
        self._share: float = options.share
        self._starts: int = options.starts
        self._scenarios = [
            dataclasses.replace(scenario, pictures=max(1, round(scenario.pictures * self._share)))
            for scenario in SCENARIOS
        ]
        self._open_pictures = max(8, round(_OPEN_PICTURES * self._share))
        self._results = results
        self._pythons: dict[str, Path] = {}
        self._supplies = {contestant.key: Supply() for contestant in contestants}
        self._model = CACHE / "nano"
        self._logs = CACHE / "logs"
        self._references = References(CACHE / "references")

    def run(self) -> None:
        self._prepare()
        self._measure_starts()
        for contestant in list(self._contestants):
            self._measure_alone(contestant)
        self._measure_side_by_side()
        for contestant in self._contestants:
            if contestant.is_ours:
                self._measure_reactions(contestant)

    def _prepare(self) -> None:
        """Make the model, the environments and the reference pictures that are missing."""
        _make_model(self._model)
        for contestant in list(self._contestants):
            try:
                self._pythons[contestant.key] = python = _environment_of(contestant)
                if not contestant.serves:
                    _convert(python, self._model)
            except (InstallError, subprocess.CalledProcessError) as error:
                self._give_up(contestant, "the installation failed", error)
            else:
                self._results.versions[contestant.key] = versions(python)
        counts: dict[tuple[int, Prompts], int] = {(side, Prompts.FRESH): 2 * _NEIGHBOURS for side in _SIDES}
        counts[128, Prompts.FRESH] += self._open_pictures
        for scenario in self._scenarios:
            kind = (scenario.side, scenario.prompts)
            counts[kind] = counts.get(kind, 0) + self._rounds * scenario.pictures
        _say("making missing reference pictures")
        kinds = [f"{side}:{prompts}:{count}" for (side, prompts), count in counts.items()]
        command = ["-m", "benchmarks.compare.references", str(self._model), str(CACHE / "references"), *kinds]
        _run([str(interpreter()), *command], environment(self._model, {}))

    def _measure_starts(self) -> None:
        """Start the service and the bare pipeline alternately."""
        ours = [contestant for contestant in self._contestants if contestant.is_ours]
        for _ in range(self._starts if ours else 0):
            _say("start: bare pipeline")
            self._results.starts.append(self._start_bare())
            for contestant in ours:
                if running := self._start(contestant):
                    running.stop()

    def _start_bare(self) -> Start:
        before, began = _children_cpu_s(), time.perf_counter()
        _run([str(interpreter()), "-m", "benchmarks.compare.bare_pipeline"], environment(self._model, {}))
        took = time.perf_counter() - began
        return Start(server="bare", ready_s=took, first_picture_s=took, cpu_s=_children_cpu_s() - before)

    def _start(self, contestant: Contestant) -> Running | None:
        _say(f"start: {contestant.title}")
        try:
            running = start(contestant, self._pythons[contestant.key], self._model, self._logs)
        except StartError as error:
            self._give_up(contestant, "the start failed", error)
            return None
        self._results.starts.append(
            Start(
                server=contestant.key,
                ready_s=running.ready_s,
                first_picture_s=running.first_picture_s,
                cpu_s=running.start_cpu_s,
            )
        )
        return running

    def _give_up(self, contestant: Contestant, doing: str, error: Exception) -> None:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = f"{doing}: {(str(output).strip().splitlines() or ['no output'])[-1]}"
        _say(f"{contestant.title}: not measured: {reason}")
        self._results.not_measured[contestant.key] = reason
        if contestant in self._contestants:
            self._contestants.remove(contestant)

    def _measure_alone(self, contestant: Contestant) -> None:
        """Measure memory, and the effect of concurrent requests on a picture, while no other contestant runs."""
        running = self._start(contestant)
        if running is None:
            return
        _say(f"alone: {contestant.title}")
        clients = _NEIGHBOURS if contestant.serves else 1
        compared = identical = largest = 0
        verdict = Verdict()
        try:
            with _PeakMemory(running.pid) as memory:
                for side in _SIDES:
                    pictures = self._supplies[contestant.key].take(_NEIGHBOURS, side, Prompts.FRESH)
                    apart = {outcome.picture: outcome for outcome in running.ask(pictures, clients=1)}
                    together = running.ask([*pictures, *pictures], clients=clients)
                    if not contestant.serves:
                        continue
                    for outcome in [*apart.values(), *together]:
                        self._references.judge(outcome.picture, outcome.status, outcome.body, verdict)
                    for outcome in together:
                        compared += 1
                        identical += outcome.body == apart[outcome.picture].body
                        with suppress(OSError):
                            off = difference(decode(outcome.body), decode(apart[outcome.picture].body))
                            largest = max(largest, off)
            processes = len(process_tree.members(running.pid))
        finally:
            running.stop()
        self._results.alone.append(
            Alone(
                server=contestant.key,
                peak_pss_bytes=memory.peak_bytes,
                processes=processes,
                compared=compared,
                identical=identical,
                largest_difference=largest,
                bad=verdict.bad,
            )
        )

    def _measure_side_by_side(self) -> None:
        """Run the scenarios in rounds over all servers. All servers stay up; idle ones use almost no CPU."""
        running: dict[str, Running] = {}
        try:
            for contestant in list(self._contestants):
                if up := self._start(contestant):
                    running[contestant.key] = up
            self._warm_up(running)
            for number in range(self._rounds):
                for scenario in self._scenarios:
                    for contestant in list(self._contestants):
                        if contestant.serves or scenario.clients == 1:
                            self._measure(contestant, running[contestant.key], scenario, number)
            for contestant in self._contestants:
                self._measure_openly(contestant, running[contestant.key])
        finally:
            for up in running.values():
                up.stop()

    def _warm_up(self, running: dict[str, Running]) -> None:
        """Request pictures of both sizes from every server before the measurements."""
        for key, up in running.items():
            _say(f"warm-up: {key}")
            for side in _SIDES:
                pictures = self._supplies[key].take(_NEIGHBOURS, side, Prompts.FRESH)
                up.ask(pictures, clients=_NEIGHBOURS if isinstance(up, RunningServer) else 1)

    def _measure(self, contestant: Contestant, running: Running, scenario: Scenario, number: int) -> None:
        pictures = self._supplies[contestant.key].take(scenario.pictures, scenario.side, scenario.prompts)
        try:
            with _Stopwatch(running.pid) as took:
                outcomes = running.ask(pictures, clients=scenario.clients)
        except StartError as error:
            self._give_up(contestant, "the process ended during a measurement", error)
            return
        self._record(contestant, outcomes, took, scenario=scenario.key, number=number)

    def _measure_openly(self, contestant: Contestant, running: Running) -> None:
        capacity = self._results.images_per_s(contestant.key, Key.SMALL_EIGHT)
        if capacity is None or not isinstance(running, RunningServer):
            return
        pictures = self._supplies[contestant.key].take(self._open_pictures, 128, Prompts.FRESH)
        rate = _LOAD * capacity
        with _Stopwatch(running.pid) as took:
            outcomes = running.ask_openly(pictures, per_second=rate)
        self._record(
            contestant,
            outcomes,
            took,
            scenario=Key.OPEN,
            number=0,
            per_second=rate,
        )

    def _record(
        self,
        contestant: Contestant,
        outcomes: Sequence[Outcome],
        took: "_Stopwatch",
        *,
        scenario: str,
        number: int,
        per_second: float | None = None,
    ) -> None:
        verdict = Verdict()
        if contestant.serves:
            for outcome in outcomes:
                self._references.judge(outcome.picture, outcome.status, outcome.body, verdict)
        images = verdict.exact + verdict.near if contestant.serves else len(outcomes)
        self._results.measurements.append(
            Measurement(
                server=contestant.key,
                scenario=scenario,
                round=number,
                images=images,
                cpu_s=round(took.cpu_s, 3),
                wall_s=round(took.wall_s, 3),
                others_cpu_s=round(took.others_cpu_s, 3),
                latencies_s=[round(outcome.latency_s, 4) for outcome in outcomes],
                exact=verdict.exact,
                near=verdict.near,
                bad=verdict.bad,
                per_second=per_second,
            )
        )
        each = f"{1000 * took.cpu_s / images:.0f} CPU-ms per image" if images else "no image"
        _say(f"round {number + 1}, {scenario}: {contestant.key}: {each}, {len(verdict.bad)} bad")

    def _measure_reactions(self, contestant: Contestant) -> None:
        _say(f"reactions: {contestant.title}")
        supply = self._supplies[contestant.key]
        try:
            found = measure_reactions(contestant, supply, share=self._share, model=self._model, folder=self._logs)
        except StartError as error:
            self._results.not_measured[f"{contestant.key}, reactions"] = str(error)
        else:
            self._results.reactions += found


class _Stopwatch:
    """Measures CPU time and wall-clock time of a process tree, and the CPU time of all other processes meanwhile."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.cpu_s = self.wall_s = self.others_cpu_s = 0.0

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s, self.wall_s, own_s, busy_s = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        self.others_cpu_s = max(0.0, busy_s - own_s - self.cpu_s)

    def _read(self) -> tuple[float, float, float, float]:
        return process_tree.cpu_seconds(self._pid), time.perf_counter(), time.process_time(), machine.busy_s()


class _PeakMemory:
    """Samples the memory of a process tree four times a second, and keeps the maximum."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, process_tree.pss_bytes(self._pid))


def _make_model(folder: Path) -> None:
    """Build the model unless the same code and libraries have already built it."""
    made_by = f"{(ROOT / 'benchmarks' / 'nano_sdxl.py').read_text()}{versions(interpreter())}"
    wanted = hashlib.sha256(made_by.encode()).hexdigest()
    mark = folder.parent / "nano-made-from"
    if mark.exists() and mark.read_text() == wanted:
        return
    _say("building the model")
    for stale in (folder, Path(f"{folder}-openvino"), folder.parent / "references"):
        shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir(parents=True)
    _run([str(interpreter()), "-m", "benchmarks.nano_sdxl", str(folder)], environment(folder, {}))
    mark.write_text(wanted)


def _environment_of(contestant: Contestant) -> Path:
    if contestant.peer is None:
        return interpreter()
    requirements = PEERS / contestant.peer / "requirements.txt"
    return make_environment(
        CACHE / "environments" / contestant.peer, requirements, like_service=contestant.like_service
    )


def _convert(python: Path, model: Path) -> None:
    """Convert the model for OpenVINO unless a converted model exists."""
    converted = Path(f"{model}-openvino")
    if not (converted / "done").exists():
        _say("converting the model to OpenVINO's format")
        shutil.rmtree(converted, ignore_errors=True)
        script = str(PEERS / "openvino_genai" / "export.py")
        _run([str(python), script, str(model), str(converted)], environment(model, {}))
        (converted / "done").touch()


def _run(command: Sequence[str], env: dict[str, str]) -> None:
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)


def _children_cpu_s() -> float:
    """Return the CPU time of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _say(what: str) -> None:
    print(f"{dt.datetime.now().astimezone():%H:%M:%S}  {what}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    keys = ", ".join(contestant.key for contestant in CONTESTANTS)
    parser.add_argument("--only", default=",".join(DEFAULT), help=f"contestants, from: {keys}")
    parser.add_argument("--rounds", type=int, help="rounds of every scenario (3; quick 1)")
    parser.add_argument("--starts", type=int, help="starts of the bare pipeline and of the service (3; quick 1)")
    parser.add_argument("--share", type=float, help="pictures of a round, relative to the usual number (1; quick 0.5)")
    parser.add_argument("--quick", action="store_true", help="a coarse run of a few minutes")
    parser.add_argument(
        "--out", type=Path, help="folder for results.json, RESULTS.md and plots (benchmarks; quick build/bench/quick)"
    )
    options = parser.parse_args()
    known = [contestant.key for contestant in CONTESTANTS]
    if unknown := [key for key in options.only.split(",") if key not in known]:
        parser.error(f"--only accepts {keys}, but not {', '.join(unknown)}")
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 3)
    options.starts = options.starts or (1 if quick else 3)
    options.share = options.share or (0.5 if quick else 1.0)
    partial = quick or options.only != ",".join(DEFAULT)
    options.out = options.out or (CACHE / "quick" if partial else ROOT / "benchmarks")
    return options


def main() -> None:
    """Run the comparison, and write results.json, RESULTS.md and the plots."""
    options = _options()
    wanted = options.only.split(",")
    contestants = [contestant for contestant in CONTESTANTS if contestant.key in wanted]
    shown = {"rounds": str(options.rounds), "starts": str(options.starts), "share": f"{options.share:g}"}
    # The service inherits these variables, so the results record them.
    shown |= {name: value for name, value in os.environ.items() if name.startswith("TURBO_")}
    results = Results(date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"), machine=machine.describe(), options=shown)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs `finally`, which stops the servers
    began = time.perf_counter()
    try:
        _Comparison(contestants, options, results).run()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} failed:\n{error.stderr}")
    results.options["minutes"] = f"{(time.perf_counter() - began) / 60:.0f}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    text = report.write(results)
    (options.out / "RESULTS.md").write_text(text)
    plots.draw(results, options.out / "plots")
    print(text)
    _say(f"written to {options.out}")


if __name__ == "__main__":
    main()
