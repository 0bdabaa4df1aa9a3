"""The search of `tune`: tries one change after the other, and keeps those that are faster and keep the pictures."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from app.cli.tuning.paired_rounds import PairedRounds, alternate
from app.cli.tuning.picture_difference import Difference, difference_of
from app.cli.tuning.switches import PLAINEST, SWITCHES, Change, Plan, Verdict, plan
from app.cli.tuning.trial_process import TrialError, TrialProcess
from app.errors import WeightsError
from app.inference.registry import LOAD_LIMITS
from app.pipelines.base import Mode
from app.settings import PREFIX, Settings
from app.weights.layout import VAE
from app.weights.source import parse_vae
from app.weights.store import locate

T = TypeVar("T")

WORKER = (sys.executable, "-m", "app.cli.tuning.trial")
"""The command of a trial's process."""

_FASTER, _NOT_SLOWER = 0.97, 1.03
"""A change is accepted if text to image takes at most the first share of the time, and image to image at most the
second. Two processes with the same settings differed by up to 2% on a machine with two cores."""

_TIMED = (Mode.TXT2IMG, Mode.IMG2IMG)
"""The modes that are timed. Inpainting is not: it calls the same networks as these, with the same shapes. Its four
steps would make the rounds several times as long."""

_MORE, _NOT_SLOWER_ALONE = 1.03, 1.1
"""Batching is accepted if it makes at least the first times the pictures per second, and a single picture takes at most
the second share of the time. A single picture is computed as without batching, so most of a difference is noise."""

WORST = 2
"""A single picture may differ by this many times the bound, which is of the mean over all pictures. With the demo model
in bf16, the worst picture differs by 1.3 times the mean."""

_QUEUE = 2
"""Requests that wait while throughput is measured, as a multiple of the batch size that pays."""

_BLOCK_S, _MAX_CALLS, _CALLS_WITH_A_FIRST = 0.3, 5, 3
"""A block of calls takes about these seconds, with at most so many calls. From so many on, its first is not counted:
after the other process, caches are cold and clocks may be low."""

_START_S, _START_TIMES = 60, 10
"""A start without compilation may take these seconds, and so many times as long as the reference's."""

_COMPILE_LIMITS = 20
"""Hang limits that a start with compilation may take for each number of pictures and mode."""

_PICTURES_LIMITS = 30
"""Hang limits that the compared pictures may take, some of which have four steps."""

RUNTIME = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Variables of a trial, unless they are set. Threads that wait in a busy loop slow calls down many times while another
process runs, such as the other trial."""

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


@dataclass(slots=True, kw_only=True)
class Row:
    """A line of the measured table.

    Attributes:
        txt2img_ms: Median milliseconds of a call for one new prompt; `img2img_ms` likewise.
        txt2img_ratio: Median of the rounds' ratios to the best settings before; of the last line, to the reference.
        at_once: The batch size that pays, as the service learned it.
        throughput_ratio: Pictures per second relative to the best settings before, while requests wait.
        largest: Largest difference from the reference's pictures, in levels of 255.
        mean: Mean difference over all pictures, and `worst` that of the picture that differs most.
        unpaired: Whether the ratios compare with earlier times, because memory was too small for two processes.
        seconds: Seconds that the trial took.
    """

    number: int
    change: str
    verdict: Verdict = Verdict.NOT_TRIED
    txt2img_ms: float | None = None
    img2img_ms: float | None = None
    txt2img_ratio: float | None = None
    img2img_ratio: float | None = None
    at_once: int | None = None
    pictures_per_s: float | None = None
    throughput_ratio: float | None = None
    largest: int | None = None
    mean: float | None = None
    worst: float | None = None
    unpaired: bool = False
    reason: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class _Speed:
    """The last measured speed of settings: median seconds by mode, and pictures per second."""

    p50_s: dict[Mode, float] = field(default_factory=dict)
    pictures_per_s: float | None = None

    @property
    def rate(self) -> float:
        return self.pictures_per_s or 1 / self.p50_s[Mode.TXT2IMG]


class Tuner:
    """Searches greedily: a trial is the best settings so far with one change. Blocks; for one thread.

    The process with the best settings stays alive, so that each trial is measured in alternation with it. If memory is
    too small for two processes, trials are compared with earlier times instead. `folder` is for scratch files. `on_row`
    gets each row of the table at the end of its trial. `worker` is a command that speaks the protocol of
    `app.cli.tuning.trial`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        worker: Sequence[str] = WORKER,
        folder: Path,
        budget_s: float,
        max_difference: float,
        on_row: Callable[[Row], None],
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._folder = folder
        self._max_difference = max_difference
        self._on_row = on_row
        self._started = time.monotonic()
        self._budget_s = budget_s
        self._trial_ends = self._started + budget_s
        self._processes: list[TrialProcess] = []
        self._process: TrialProcess | None = None  # of the best settings; None while memory is too small for it
        self._alone = False  # whether memory is too small for two processes
        self._speed = _Speed()
        self._at_once = 1  # the batch size that pays with the best settings
        self._tried: list[Change] = []
        self._accepted: list[tuple[Change, str]] = []  # each best settings, and the change that made them
        self._best_facts: Mapping[str, Any] = {}
        self._start_s = self._trial_s = 0.0  # of the reference
        self._numbers = count()

        self.pinned = {name: as_text(getattr(settings, name)) for name in PLAINEST if name in settings.model_fields_set}
        self.reference: Change = {**PLAINEST, **self.pinned}
        self.best: Change = self.reference
        self.rows: list[Row] = []
        self.facts: Mapping[str, Any] = {}
        """Device and versions, as the reference's process reported them."""
        self.again = Difference()
        """The difference between the reference's pictures and the same pictures made again."""
        self.verified: Row | None = None
        """The row of the winner's comparison with the reference; None if there is none, or it failed."""
        self.note = ""
        """The changes that the verification dropped, or the reason why there was none; may be empty."""

    @property
    def used_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    @property
    def winner(self) -> Change:
        """The best settings that matter on this device, and those that the operator has set."""
        names = [name for name in PLAINEST if name in SWITCHES[self.facts["kind"]] or name in self.pinned]
        return {name: self.best[name] for name in names}

    def close(self, *, at_once: bool) -> None:
        """End all processes; those that wait for a command in an orderly way, unless `at_once`."""
        if not at_once:
            self._end(self._process)
        for process in self._processes:
            process.kill()

    def measure_reference(self) -> None:
        """Start the reference settings, make their pictures twice, and measure them.

        Raises:
            TrialError: They cannot be started or measured, or make dead pictures.
        """
        row = self._row("reference")
        started = time.monotonic()
        process = self._start(self.reference)
        self._start_s = time.monotonic() - started
        self._process, self.facts, self._best_facts = process, process.facts, process.facts
        if dead := self._make_pictures(process, self._reference_file):
            raise TrialError(f"the reference settings make dead pictures: {', '.join(dead)}")
        self._make_pictures(process, self._folder / "again.npz")
        self.again = difference_of(self._reference_file, self._folder / "again.npz")
        row.largest, row.mean, row.worst = self.again.largest, self.again.mean, self.again.worst
        self._time_rounds(row, process, None)
        if self.reference["batching"] != "off":
            self._at_once = row.at_once = self._learn(process)
        row.verdict = Verdict.REFERENCE
        self._trial_s = row.seconds = time.monotonic() - started
        self._add(row)

    def search(self) -> None:
        """Try the changes of every switch that the operator has not set."""
        for steps in self._plans():
            try:
                change = next(steps)
                while True:
                    change = steps.send(self._try(change))
            except StopIteration:
                continue

    def verify(self) -> None:
        """Start the winner once more, and compare it with the reference.

        If it fails, or is no gain, the change that was accepted last is given up, and the rest is compared; at the end
        of all changes, the reference is the winner.
        """
        if not self._accepted:
            return
        candidate = self.best
        try:
            self.best = self.reference
            self._end(self._process)
            self._trial_ends = self._started + max(self._budget_s, self.used_s + self._trial_s)
            self._process = self._start(self.reference)
            self._speed = _Speed()
            self._time_rounds(Row(number=0, change=""), self._process, None)
            if self._alone:
                self._end(self._process)
                self._process = None
            given_up: list[str] = []
            while self._accepted and self.verified is None and (not given_up or self._left_s > self._trial_s):
                candidate, change = self._accepted.pop()
                without = f" but {'; '.join(given_up)}" if given_up else ""
                if not self._verify(self._row(f"all changes{without}, against the reference"), candidate):
                    given_up.append(change)
            if given_up:
                rest = "" if self.verified else ", and with it all other changes"
                self.note = f"Given up, because its verification failed: {'; '.join(given_up)}{rest}."
        except TrialError as error:
            self.note = f"The winner was given up: the reference settings did not start again ({error})."
        except BaseException:  # an interrupt
            self.best = candidate
            raise
        if self.verified:
            self.best = candidate

    def _verify(self, row: Row, settings: Change) -> bool:
        """Compare settings with the reference; tell whether they are a gain with the same pictures."""
        started = time.monotonic()
        self._trial_ends = started + max(self._left_s, self._trial_s)
        try:
            self._end(self._measure(row, settings, Verdict.VERIFIED))
        except (TrialError, ValueError) as error:
            row.verdict, row.reason = Verdict.FAILED, str(error)
        row.seconds = time.monotonic() - started
        self._add(row)
        if row.verdict is Verdict.VERIFIED:
            self.verified = row
        return self.verified is not None

    @property
    def _reference_file(self) -> Path:
        return self._folder / "reference.npz"

    @property
    def _left_s(self) -> float:
        return self._budget_s - self.used_s

    def _row(self, change: str) -> Row:
        return Row(number=next(self._numbers), change=change)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._on_row(row)

    def _plans(self) -> Iterator[Plan]:
        switches = SWITCHES[self.facts["kind"]]
        values = {name: values for name, values in switches.items() if name not in self.pinned}
        if self.pinned.get("batching") == "off":
            values.pop("max_batch", None)
        if "batching" in values:
            yield from (plan(name, values) for name in values if name != "max_batch")
        else:
            yield from (plan(name, values) for name in values)

    def _try(self, change: Change) -> Verdict:
        """Measure the best settings with one change, and keep the change if it is accepted."""
        change = {name: _cores(text) if name == "threads" else text for name, text in change.items()}
        settings = {**self.best, **change}
        if not self._is_new(change) or settings in self._tried:
            return Verdict.REFERENCE
        self._tried.append(settings)
        row = self._row(", ".join(f"{name}={text}" for name, text in change.items()))
        reserve_s = 2 * self._trial_s  # for the verification
        if self._left_s < reserve_s + self._trial_s:
            self._add(row)
            return row.verdict
        started = time.monotonic()
        # One trial takes at most half of the time that is left, so that a hang leaves time for others.
        self._trial_ends = started + max((self._left_s - reserve_s) / 2, self._trial_s)
        process = None
        try:
            process = self._measure(row, settings, Verdict.ACCEPTED)
        except (TrialError, ValueError) as error:
            row.verdict, row.reason = Verdict.FAILED, str(error)
        if row.verdict is Verdict.ACCEPTED:
            self._end(self._process)
            self._accepted.append((settings, row.change))
            self._process, self.best, self._at_once = process, settings, row.at_once or self._at_once
            if process is not None:
                self._best_facts = process.facts
            self._speed = _Speed(
                {Mode.TXT2IMG: (row.txt2img_ms or 0) / 1000, Mode.IMG2IMG: (row.img2img_ms or 0) / 1000},
                row.pictures_per_s,
            )
        else:
            self._end(process)
        row.seconds = time.monotonic() - started
        self._add(row)
        return row.verdict

    def _is_new(self, change: Change) -> bool:
        """Tell whether a change changes anything on this device, and its weights are on the disk."""
        if all(self.best[name] == text for name, text in change.items()):
            return False
        ((name, text), *others) = change.items()
        if others:
            return True
        if name == "allow_tf32":
            return "float32" in self._best_facts["dtypes"].values()
        # If the best settings have another value than the reference, they have been compared with the reference's.
        known = (self.facts, self._best_facts)
        if name in ("dtype", "vae_dtype"):
            model = "vae" if name == "vae_dtype" else "loaded"
            return all(facts["dtypes"][model] != _DTYPES[text] for facts in known)
        if name == "threads":
            return all(facts["threads"] != int(text) for facts in known)
        return name != "vae" or self._is_pulled(text)

    def _is_pulled(self, vae: str) -> bool:
        with suppress(WeightsError):
            if (source := parse_vae(vae)) is not None:
                locate(source, self._settings.weights_dir, VAE)
                return True
        return False

    def _measure(self, row: Row, settings: Change, success: Verdict) -> TrialProcess | None:
        """Fill in the row of settings, and return their process. `success` is the verdict if they are a gain.

        Raises:
            TrialError: The settings' process failed. It is dead.
        """
        process, row.unpaired = None, self._alone
        if not self._alone:
            self._revive_best()
        try:
            process = self._start(settings)
            self._examine(row, process, self._process, settings, success)
        except TrialError as error:
            self._end(process)
            if not error.for_memory or self._process is None:
                raise
            self._end(self._process)  # its memory may be what was missing
            self._process, row.unpaired = None, True
            process = self._start(settings)
            self._alone = True
            try:
                self._examine(row, process, None, settings, success)
            except TrialError:
                self._end(process)
                raise
        return process

    def _revive_best(self) -> None:
        """Start the best settings again if their process has ended.

        Raises:
            TrialError: They do not start.
        """
        if self._process is None or not self._process.alive:
            try:
                self._process = self._start(self.best)
            except TrialError as error:
                raise TrialError(f"the settings to compare with did not start again: {error}") from error

    def _examine(
        self, row: Row, process: TrialProcess, best: TrialProcess | None, settings: Change, success: Verdict
    ) -> None:
        by_throughput = any(settings[name] != self.best[name] for name in ("batching", "max_batch"))
        if by_throughput:
            row.at_once = self._learn(process)
            if success is Verdict.ACCEPTED and row.at_once <= self._at_once:
                row.verdict, row.reason = Verdict.NO_GAIN, "no larger batch is faster"
                return
        verdict = self._compare(row, process)
        if verdict is Verdict.DEAD:
            row.verdict = verdict
            return
        self._time_rounds(row, process, best, short=verdict is not None)
        if by_throughput:
            if best is not None and self.best["batching"] != "off":
                self._learn(best)
            self._throughput_rounds(row, process, best, waiting=_waiting(row, settings))
        row.verdict = verdict or _judge(row, success, by_throughput=by_throughput)

    def _learn(self, process: TrialProcess) -> int:
        """Let a process learn which batch size pays, and return it."""
        return int(process.ask("learn", limit_s=self._limit_s(_PICTURES_LIMITS))["at_once"])

    def _compare(self, row: Row, process: TrialProcess) -> Verdict | None:
        """Compare pictures with the reference's, and those of a batch with the same made alone. None if they agree."""
        file = self._folder / "pictures.npz"
        if dead := self._make_pictures(process, file):
            row.reason = ", ".join(dead)
            return Verdict.DEAD
        difference = difference_of(self._reference_file, file)
        if row.at_once and row.at_once > 1:
            alone, together = self._folder / "alone.npz", self._folder / "together.npz"
            limit_s = self._limit_s(2 * row.at_once)
            process.ask("batch", pictures=row.at_once, alone=str(alone), together=str(together), limit_s=limit_s)
            difference |= difference_of(alone, together)
        row.largest, row.mean, row.worst = difference.largest, difference.mean, difference.worst
        bound = self._max_difference
        return Verdict.DIFFERS if difference.mean > bound or difference.worst > WORST * bound else None

    def _time_rounds(self, row: Row, process: TrialProcess, best: TrialProcess | None, *, short: bool = False) -> None:
        """Time single pictures in rounds, in alternation with the best settings if their process runs."""
        rounds = {mode: PairedRounds() for mode in _TIMED}

        def blocks_s(each: TrialProcess) -> dict[Mode, float]:
            return {mode: self._block_s(each, mode) for mode in _TIMED}

        def measure(*, candidate_first: bool) -> Sequence[PairedRounds]:
            candidate_s, best_s = _in_turn(process, best, blocks_s, candidate_first=candidate_first)
            for mode in _TIMED:
                rounds[mode].add(candidate_s[mode], None if best_s is None else best_s[mode])
            return list(rounds.values())

        alternate(measure, short=short or best is None)
        results = {mode: rounds[mode].result for mode in _TIMED}
        p50_s = {mode: result.seconds for mode, result in results.items()}
        row.txt2img_ms, row.img2img_ms = p50_s[Mode.TXT2IMG] * 1000, p50_s[Mode.IMG2IMG] * 1000
        row.pictures_per_s = 1 / p50_s[Mode.TXT2IMG]
        if not self._speed.p50_s:  # the reference's first times
            self._speed = _Speed(p50_s)
            return
        row.txt2img_ratio, row.img2img_ratio = (
            result.ratio or result.seconds / self._speed.p50_s[mode] for mode, result in results.items()
        )

    def _block_s(self, process: TrialProcess, mode: Mode) -> float:
        """Return the median seconds of a block of calls."""
        known_s = self._speed.p50_s.get(mode)
        calls = 1 if known_s is None else max(1, min(round(_BLOCK_S / known_s), _MAX_CALLS))
        seconds: list[float] = process.ask("time", mode=mode, calls=calls, limit_s=self._limit_s(calls + 1))["seconds"]
        return statistics.median(seconds[1:] if calls >= _CALLS_WITH_A_FIRST else seconds)

    def _throughput_rounds(self, row: Row, process: TrialProcess, best: TrialProcess | None, *, waiting: int) -> None:
        """Measure pictures per second while requests wait, in alternation as above."""
        rounds = PairedRounds()

        def picture_s(each: TrialProcess) -> float:
            answer = each.ask("throughput", waiting=waiting, limit_s=self._limit_s(waiting + 1))
            return 1 / float(answer["pictures_per_s"])

        def measure(*, candidate_first: bool) -> Sequence[PairedRounds]:
            rounds.add(*_in_turn(process, best, picture_s, candidate_first=candidate_first))
            return [rounds]

        alternate(measure)
        result = rounds.result
        row.pictures_per_s = 1 / result.seconds
        row.throughput_ratio = 1 / (result.ratio or result.seconds * self._speed.rate)

    def _make_pictures(self, process: TrialProcess, file: Path) -> Sequence[str]:
        """Save the compared pictures, and return the names of dead ones."""
        dead: Sequence[str] = process.ask("pictures", file=str(file), limit_s=self._limit_s(_PICTURES_LIMITS))["dead"]
        return dead

    def _start(self, settings: Change) -> TrialProcess:
        limit_s = self._limit_s(LOAD_LIMITS)
        if settings["npu_graphs"] == "true" or settings["compile"] == "on":
            pictures = int(settings["max_batch"]).bit_length() if settings["batching"] != "off" else 1
            limit_s = self._limit_s(LOAD_LIMITS + len(Mode) * pictures * _COMPILE_LIMITS)
        elif self._start_s:
            limit_s = min(limit_s, _START_S + _START_TIMES * self._start_s)
        log = self._folder / f"{len(self._processes)}.log"
        process = TrialProcess(self._worker, _environment(self._settings, settings), log=log)
        self._processes.append(process)
        process.wait_until_warm(limit_s=limit_s)
        return process

    def _end(self, process: TrialProcess | None) -> None:
        if process is not None:
            process.close()

    def _limit_s(self, hang_limits: float) -> float:
        """Return the seconds of some hang limits, or those that are left of the trial, but at least 1."""
        return max(1.0, min(hang_limits * self._settings.hang_limit_s, self._trial_ends - time.monotonic()))


def _judge(row: Row, success: Verdict, *, by_throughput: bool) -> Verdict:
    """Return `success` if the row's ratios are a gain."""
    txt2img, img2img, more = row.txt2img_ratio or 1.0, row.img2img_ratio or 1.0, row.throughput_ratio or 1.0
    if success is Verdict.VERIFIED:
        return success if txt2img < 1 or more > 1 else Verdict.NO_GAIN
    if max(txt2img, img2img) > (_NOT_SLOWER_ALONE if by_throughput else _NOT_SLOWER):
        return Verdict.SLOWER
    return success if (more >= _MORE if by_throughput else txt2img <= _FASTER) else Verdict.NO_GAIN


def _waiting(row: Row, settings: Change) -> int:
    return min(int(settings["max_batch"]), _QUEUE * (row.at_once or 1))


def as_text(value: object) -> str:
    """Return a setting's value as a variable has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, int) else value)


def _environment(settings: Settings, changes: Change) -> dict[str, str]:
    """Return a trial's environment: the operator's, with the operator's flags, and the trial's settings."""
    environment = {name: text for name, text in os.environ.items() if not name.upper().startswith(PREFIX)}
    for name, text in RUNTIME.items():
        environment.setdefault(name, text)
    given = {name: as_text(getattr(settings, name)) for name in settings.model_fields_set - {"env_file"}}
    given["warm_up_sizes"] = settings.warm_up_sizes.partition(",")[0]  # the others would compile, and are not measured
    return environment | {f"{PREFIX}{name.upper()}": text for name, text in {**given, **changes}.items()}


def _cores(share: str) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"all": str(cores), "half": str(max(1, cores // 2))}.get(share, share)


def _in_turn(
    process: TrialProcess, best: TrialProcess | None, measure: Callable[[TrialProcess], T], *, candidate_first: bool
) -> tuple[T, T | None]:
    """Measure the candidate and the best settings, if these run; return both results in this order."""
    if candidate_first or best is None:
        result = measure(process)
        return result, measure(best) if best is not None else None
    of_best = measure(best)
    return measure(process), of_best
