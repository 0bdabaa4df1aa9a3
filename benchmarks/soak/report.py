"""Writes SOAK.md: each promise, its bound, the measured value, and the verdict."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.compare.environments import versions
from benchmarks.compare.results import quantile
from benchmarks.support import machine
from benchmarks.support.contestants import interpreter


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, its bound, and the measured value."""

    text: str
    value: float
    bound: float
    form: Callable[[float], str]
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the measured value is within the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Part:
    """The results of one part of the soak."""

    title: str
    promises: Sequence[Promise]
    facts: Mapping[str, str] = field(default_factory=dict)


def none_of(text: str, count: int) -> Promise:
    """Return the promise that this count is zero."""
    return Promise(text, count, 0, "{:.0f}".format)


def share_of(text: str, share: float, bound: float, *, at_least: bool = True) -> Promise:
    """Return the promise that this share is at least, or at most, the bound."""
    return Promise(text, share, bound, lambda share: f"{100 * share:.3g} %", at_least)


def at_most_ms(text: str, seconds: Sequence[float], share: float, bound_s: float) -> Promise:
    """Return the promise that this quantile of the times is within the bound."""
    return Promise(text, quantile(seconds, share), bound_s, lambda seconds: f"{1000 * seconds:.3g} ms")


def spread(seconds: Sequence[float], unit: str = "ms") -> str:
    """Return the quantiles of the times as text."""
    if not seconds:
        return "none"
    scale = 1000 if unit == "ms" else 1
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return ", ".join(f"{word} {scale * quantile(seconds, share):.1f}" for word, share in shares.items()) + f" {unit}"


def write(parts: Sequence[Part], *, load_average: float, **options: str) -> str:
    """Return SOAK.md."""
    return "\n".join(_lines(parts, load_average, options)).rstrip() + "\n"


def _lines(parts: Sequence[Part], load_average: float, options: Mapping[str, str]) -> Iterator[str]:
    yield "# Soak"
    yield ""
    yield "Written by `python -m benchmarks.soak`; [README.md](README.md) explains the promises and the measurements."
    yield f"{dt.datetime.now(dt.UTC):%Y-%m-%d}; {_named(machine.describe())}; load average before {load_average:.1f}."
    yield f"{_named(options)}. {_named(versions(interpreter()))}."
    yield ""
    for part in parts:
        yield f"## {part.title}"
        yield ""
        yield "| promise | bound | measured | |"
        yield "| --- | --- | --- | --- |"
        for promise in part.promises:
            bound = f"{'≥' if promise.at_least else '≤'} {promise.form(promise.bound)}" if promise.bound else "none"
            verdict = "kept" if promise.kept else "**missed**"
            yield f"| {promise.text} | {bound} | {promise.form(promise.value)} | {verdict} |"
        yield ""
        yield from (f"- {name}: {told}" for name, told in part.facts.items())
        yield ""


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
