"""The nano scope: the overhead around a small model. The service and all its peers run side by side."""

import argparse
import dataclasses
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.compare.environments import InstallError, versions
from benchmarks.compare.meters import PeakMemory, Stopwatch, start_bare
from benchmarks.compare.preparation import CACHE, convert, environment_of, run, say
from benchmarks.compare.reactions import measure_reactions
from benchmarks.compare.results import SCENARIOS, Alone, Key, Measurement, Results, Scenario, Start
from benchmarks.support import process_tree
from benchmarks.support.contestants import (
    CONTESTANTS,
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

_NEIGHBOURS = 8
_OPEN_PICTURES = 80
_LOAD = 0.7
_SIDES = (128, 512)


class NanoComparison:
    """One run of the comparison."""

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        wanted = options.only.split(",")
        self._contestants = [contestant for contestant in CONTESTANTS if contestant.key in wanted]
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
        self._supplies = {contestant.key: Supply() for contestant in self._contestants}
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
                self._pythons[contestant.key] = python = environment_of(contestant)
                if not contestant.serves:
                    convert(python, "export.py", self._model, Path(f"{self._model}-openvino"), "fp32")
            except (InstallError, subprocess.CalledProcessError) as error:
                self._give_up(contestant, "the installation failed", error)
            else:
                self._results.versions[contestant.key] = versions(python)
        counts: dict[tuple[int, Prompts], int] = {(side, Prompts.FRESH): 2 * _NEIGHBOURS for side in _SIDES}
        counts[128, Prompts.FRESH] += self._open_pictures
        for scenario in self._scenarios:
            kind = (scenario.side, scenario.prompts)
            counts[kind] = counts.get(kind, 0) + self._rounds * scenario.pictures
        say("making missing reference pictures")
        kinds = [f"{side}:{prompts}:{count}" for (side, prompts), count in counts.items()]
        command = ["-m", "benchmarks.compare.references", str(self._model), str(CACHE / "references"), *kinds]
        run([str(interpreter()), *command], environment(self._model, {}))

    def _measure_starts(self) -> None:
        """Start the service and the bare pipeline alternately."""
        ours = [contestant for contestant in self._contestants if contestant.is_ours]
        for _ in range(self._starts if ours else 0):
            say("start: bare pipeline")
            self._results.starts.append(start_bare(environment(self._model, {})))
            for contestant in ours:
                if running := self._start(contestant):
                    running.stop()

    def _start(self, contestant: Contestant) -> Running | None:
        say(f"start: {contestant.title}")
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
        say(f"{contestant.title}: not measured: {reason}")
        self._results.not_measured[contestant.key] = reason
        if contestant in self._contestants:
            self._contestants.remove(contestant)

    def _measure_alone(self, contestant: Contestant) -> None:
        """Measure memory, and the effect of concurrent requests on a picture, while no other contestant runs."""
        running = self._start(contestant)
        if running is None:
            return
        say(f"alone: {contestant.title}")
        clients = _NEIGHBOURS if contestant.serves else 1
        compared = identical = largest = 0
        verdict = Verdict()
        try:
            with PeakMemory(running.pid) as memory:
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
            say(f"warm-up: {key}")
            for side in _SIDES:
                pictures = self._supplies[key].take(_NEIGHBOURS, side, Prompts.FRESH)
                up.ask(pictures, clients=_NEIGHBOURS if isinstance(up, RunningServer) else 1)

    def _measure(self, contestant: Contestant, running: Running, scenario: Scenario, number: int) -> None:
        pictures = self._supplies[contestant.key].take(scenario.pictures, scenario.side, scenario.prompts)
        try:
            with Stopwatch(running.pid) as took:
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
        with Stopwatch(running.pid) as took:
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
        took: Stopwatch,
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
        say(f"round {number + 1}, {scenario}: {contestant.key}: {each}, {len(verdict.bad)} bad")

    def _measure_reactions(self, contestant: Contestant) -> None:
        say(f"reactions: {contestant.title}")
        supply = self._supplies[contestant.key]
        try:
            found = measure_reactions(contestant, supply, share=self._share, model=self._model, folder=self._logs)
        except StartError as error:
            self._results.not_measured[f"{contestant.key}, reactions"] = str(error)
        else:
            self._results.reactions += found


def _make_model(folder: Path) -> None:
    """Build the model unless the same code and libraries have already built it."""
    made_by = f"{(ROOT / 'benchmarks' / 'nano_sdxl.py').read_text()}{versions(interpreter())}"
    wanted = hashlib.sha256(made_by.encode()).hexdigest()
    mark = folder.parent / "nano-made-from"
    if mark.exists() and mark.read_text() == wanted:
        return
    say("building the model")
    for stale in (folder, Path(f"{folder}-openvino"), folder.parent / "references"):
        shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir(parents=True)
    run([str(interpreter()), "-m", "benchmarks.nano_sdxl", str(folder)], environment(folder, {}))
    mark.write_text(wanted)
