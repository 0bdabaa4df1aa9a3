"""Rounds of measurements of two processes in alternation: their ratio, without the rounds that were disturbed."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_TIMING_S, _DISTURBED_S = 4.0, 12.0
"""Seconds spent on rounds, and at most if other programs disturb them."""

_MIN_ROUNDS, _MAX_ROUNDS = 3, 25

_DISTURBED = 1.2
"""A round is disturbed if either process took more than this many times the seconds of its fastest round. On a machine
with two cores, other programs slowed calls down as much as 27 times, for many seconds."""

_CLEARLY = 1.1
"""If all rounds differ by more than this in the same direction, no more rounds are made."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Medians of undisturbed rounds: the candidate's seconds, and the ratio to the other's; None without another."""

    seconds: float
    ratio: float | None


@dataclass(slots=True)
class PairedRounds:
    """Seconds of the candidate and of the best settings, round by round; or of the candidate alone, and None."""

    rounds: list[tuple[float, float | None]] = field(default_factory=list)

    def add(self, candidate_s: float, best_s: float | None) -> None:
        self.rounds.append((candidate_s, best_s))

    @property
    def result(self) -> Paired:
        """The medians. If every round was disturbed, the ratio is that of the fastest ones."""
        kept = self._undisturbed()
        if not kept:
            least_s = [min(column) for column in self._columns()]
            return Paired(least_s[0], least_s[0] / least_s[1])
        seconds = statistics.median(candidate_s for candidate_s, _ in kept)
        ratios = [candidate_s / best_s for candidate_s, best_s in kept if best_s is not None]
        return Paired(seconds, statistics.median(ratios) if ratios else None)

    @property
    def are_enough(self) -> bool:
        return len(self._undisturbed()) >= _MIN_ROUNDS

    @property
    def are_clear(self) -> bool:
        """Whether all undisturbed rounds say that one is much faster."""
        ratios = [candidate_s / best_s for candidate_s, best_s in self._undisturbed() if best_s is not None]
        return bool(ratios) and (min(ratios) > _CLEARLY or max(ratios) < 1 / _CLEARLY)

    def _columns(self) -> list[Sequence[float]]:
        return [[second for second in column if second is not None] for column in zip(*self.rounds, strict=True)]

    def _undisturbed(self) -> list[tuple[float, float | None]]:
        limits_s = [_DISTURBED * min(column, default=0.0) for column in self._columns()]
        return [
            pair
            for pair in self.rounds
            if all(second is None or second <= limit_s for second, limit_s in zip(pair, limits_s, strict=True))
        ]


class _Round(Protocol):
    def __call__(self, *, candidate_first: bool) -> Sequence[PairedRounds]: ...


def alternate(measure: _Round, *, short: bool = False) -> None:
    """Call `measure` for one round after the other until the rounds tell enough, or take too long.

    `measure` adds a round to each of its results and returns them; the first decides whether the difference is clear.
    `candidate_first` tells whether the candidate is to be measured first. A `short` measurement ends as soon as it can.
    """
    started = time.monotonic()
    for number in range(_MAX_ROUNDS):
        first, *others = measure(candidate_first=number % 2 == 0)
        used_s = time.monotonic() - started
        enough = all(rounds.are_enough for rounds in (first, *others))
        if used_s > _DISTURBED_S and number + 1 >= _MIN_ROUNDS:
            return
        if enough and (short or used_s > _TIMING_S or first.are_clear):
            return
