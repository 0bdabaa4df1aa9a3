"""The tuner of the operator's own device: finds the fastest settings that paint the same pictures, and writes a file.

No module of this process imports torch: every trial is a process of its own (`app.cli.tuning.trial`).
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from app import __version__
from app.cli.tuning.search import RUNTIME, WORKER, WORST, Row, Tuner
from app.cli.tuning.switches import SWITCHES, Change, Verdict
from app.cli.tuning.trial_process import TrialError
from app.cli.tuning.tuned_file import is_tuned, variables, write_tuned
from app.errors import TurboError
from app.settings import Settings
from app.weights.source import FakeSource, parse_source

BUDGET_S = 1800.0
"""Default seconds of the whole command."""

MAX_DIFFERENCE = 2.0
"""Default bound of the mean difference from the reference's pictures, in levels of 255. The demo model's pictures in
bf16 differ from those in fp32 by 1.4 to 1.6 on average, and are as good (the model card's measurements)."""

_FAILED, _USAGE_ERROR = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The arguments of the command."""

    output: Path
    budget_s: float = BUDGET_S
    max_difference: float = MAX_DIFFERENCE
    force: bool = False
    as_json: bool = False


class _Interrupt(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def tune(settings: Settings, options: Options, *, worker: Sequence[str] = WORKER) -> int:
    """Find the fastest settings, write them to a file, print the table to stdout, and return the exit code.

    Progress goes to stderr. SIGINT and SIGTERM end it early: the file then has what was found so far. `worker` is the
    command of a trial's process.
    """
    try:
        if isinstance(parse_source(settings.model), FakeSource):
            return _fail("The fake has no model to measure. Set TURBO_MODEL.")
    except TurboError as error:
        return _fail(str(error))
    if fault := _fault_of(options):
        return _fail(fault, code=_USAGE_ERROR)
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _tune(settings, options, worker)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the writing of the file
    raise _Interrupt(number)


def _fault_of(options: Options) -> str:
    """Return why the file must not or cannot be written, before hours are spent; an empty text if it can be."""
    path = options.output
    if path.exists() and not is_tuned(path) and not options.force:
        return f"{path} was not written by `tune`. Choose another --output, or replace it with --force."
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            return ""
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}."


def _tune(settings: Settings, options: Options, worker: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        tuner = Tuner(
            settings,
            worker=worker,
            folder=Path(folder),
            budget_s=options.budget_s,
            max_difference=options.max_difference,
            on_row=lambda row: _progress(f"{_line(row)}  [{tuner.used_s:.0f} of {options.budget_s:.0f} s]"),
        )
        code = 0
        try:
            _progress(f"starting the reference settings of {settings.model}")
            tuner.measure_reference()
            tuner.search()
            tuner.verify()
        except _Interrupt as interrupt:
            code = 128 + interrupt.number
            tuner.note = f"Interrupted by {signal.Signals(interrupt.number).name}; the winner was not verified."
        except (TrialError, ValueError) as error:
            return _fail(f"The reference settings cannot be measured: {error}")
        finally:
            tuner.close(at_once=code != 0)
    if not tuner.rows:
        return _fail("Interrupted before the reference settings were measured; no file was written.", code=code)
    report = _Report(settings, options, tuner)
    try:
        runtime = {name: os.environ.get(name, text) for name, text in RUNTIME.items()}
        write_tuned(options.output, facts=report.facts(), table=report.table(), settings=tuner.winner, runtime=runtime)
    except OSError as error:
        code = _fail(f"{options.output} cannot be written: {error.strerror}.")
    with suppress(BrokenPipeError):  # a reader such as `head` may stop early
        text = json.dumps(report.as_dict(), indent=1) if options.as_json else "\n".join(report.for_people())
        print(text, flush=True)  # noqa: T201
    return code


class _Report:
    """The findings, in the forms of the file, of JSON and for people."""

    def __init__(self, settings: Settings, options: Options, tuner: Tuner) -> None:
        self._options = options
        self._tuner = tuner
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        self._size = settings.warm_up_sizes.partition(",")[0]

    def facts(self) -> Iterator[str]:
        tuner, facts = self._tuner, self._tuner.facts
        yield f"Date: {self._date}, after {tuner.used_s:.0f} s"
        yield f"Service: sdxl-turbo-server {__version__}"
        yield f"Model: {facts['model']}"
        yield f"Device: {facts['device']}"
        yield f"Versions: {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}"
        yield f"Size: {self._size}"
        bound = self._options.max_difference
        yield (
            f"Bound: the mean difference from the reference's pictures is at most {bound:g} of 255 levels, "
            f"and that of the worst picture at most {WORST * bound:g}."
        )
        yield f"Reference: {_texts(tuner.reference, tuner)}"
        if tuner.pinned:
            yield f"Set by the operator, and not varied: {_assignments(tuner.pinned)}"
        if tuner.again.largest:
            yield f"The device is not deterministic: the same settings differ by up to {tuner.again.largest} levels."
        yield f"Result: {self._result()}"

    def _result(self) -> str:
        tuner, row = self._tuner, self._tuner.verified
        if row is not None:
            more = "" if row.throughput_ratio is None else f", {row.throughput_ratio:.2f} times the pictures per second"
            gain = (
                f"{_ratio(row.txt2img_ratio)} times the reference's seconds for text to image, "
                f"{_ratio(row.img2img_ratio)} for image to image{more}."
            )
            return f"{gain} {tuner.note}".rstrip()
        nothing = "No change is better than the reference." if tuner.best == tuner.reference else ""
        return " ".join(filter(None, [nothing, tuner.note]))

    def table(self) -> Iterator[str]:
        width = max(len(row.change) for row in self._tuner.rows)
        yield (
            f"{'#':>3}  {'change':<{width}}  {'txt2img ms':>10}  {'ratio':>5}  {'img2img ms':>10}  {'ratio':>5}  "
            f"{'pictures/s':>10}  {'ratio':>5}  {'largest':>7}  {'mean':>5}  {'worst':>5}  verdict"
        )
        for row in self._tuner.rows:
            yield (
                f"{row.number:>3}  {row.change:<{width}}  {_number(row.txt2img_ms, 1):>10}  "
                f"{_ratio(row.txt2img_ratio):>5}  {_number(row.img2img_ms, 1):>10}  {_ratio(row.img2img_ratio):>5}  "
                f"{_number(row.pictures_per_s, 2):>10}  {_ratio(row.throughput_ratio):>5}  "
                f"{_number(row.largest, 0):>7}  {_number(row.mean, 2):>5}  {_number(row.worst, 2):>5}  "
                f"{_verdict(row)}"
            )

    def for_people(self) -> Iterator[str]:
        yield from self.facts()
        yield ""
        yield from self.table()
        yield ""
        yield from variables(self._tuner.winner)
        yield f"{self._options.output} has these settings: start the service with TURBO_ENV_FILE={self._options.output}"

    def as_dict(self) -> dict[str, Any]:
        tuner = self._tuner
        return {
            "date": self._date,
            "service": __version__,
            "size": self._size,
            **tuner.facts,
            "max_difference": self._options.max_difference,
            "deterministic": tuner.again.largest == 0,
            "reference": dict(tuner.reference),
            "pinned": tuner.pinned,
            "trials": [asdict(row) for row in tuner.rows],
            "winner": dict(tuner.winner),
            "verified": tuner.verified is not None,
            "result": self._result(),
            "seconds": round(tuner.used_s, 1),
            "file": str(self._options.output),
        }


def _texts(change: Change, tuner: Tuner) -> str:
    switches = SWITCHES[tuner.facts["kind"]]
    return _assignments({name: text for name, text in change.items() if name in switches and text})


def _assignments(change: Change) -> str:
    return ", ".join(f"{name}={text}" for name, text in change.items())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(value: float | None) -> str:
    return _number(value, 2)


def _verdict(row: Row) -> str:
    notes = [f"{row.at_once} at once"] if row.at_once else []
    notes += ["unpaired"] if row.unpaired else []
    notes += [row.reason] if row.reason else []
    return f"{row.verdict} ({', '.join(notes)})" if notes else str(row.verdict)


def _line(row: Row) -> str:
    figures = ""
    if row.txt2img_ratio is not None:
        figures = f"  txt2img x{row.txt2img_ratio:.2f}, img2img x{_ratio(row.img2img_ratio)}"
    if row.throughput_ratio is not None:
        figures += f", pictures/s x{row.throughput_ratio:.2f}"
    if row.mean is not None and row.verdict is not Verdict.REFERENCE:
        figures += f"  differs by {row.mean:.2f}, at most {row.largest}"
    return f"[{row.number}] {row.change}{figures}  {_verdict(row)}"


def _fail(line: str, *, code: int = _FAILED) -> int:
    _progress(line)
    return code


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
