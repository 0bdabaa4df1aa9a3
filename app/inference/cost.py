"""The cost of calls: the seconds that pictures take on this device, measured during warm-up and by every call.

Every bound on a call's time comes from here: when it counts as hung, whether it can meet the deadline, and when a
client should retry. Each kind of picture has its own measurements. A kind that has none is judged by its work relative
to the warm-up's picture, so neither large nor small requests change the estimates for others.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.inference.samples import sample_pictures
from app.pipelines.base import GenerationParams, Mode

Request = Sequence[GenerationParams]
"""The pictures of one request, which are of one kind."""

_Kind = tuple[Mode, int, int, int]
"""The seconds of a picture depend on these: mode, width and height in pixels, effective steps."""

_EWMA_WEIGHT = 0.2
"""Weight of the newest call in running means."""

_RECENT_REQUESTS, _PREFILLED = 15, 2
"""The median of so many requests is assumed for a request that has not been read; some are the warm-up's picture at
first. One large request does not move the median."""

_HANG_FACTOR = 8
"""A call may always take this many times its expected seconds. On a busy CPU the wall time of calls varied tenfold, and
the expected seconds follow it."""

_CERTAIN = 0.7
"""Share of the extrapolated seconds that an unmeasured kind takes at the least. A part of a call does not grow with the
pixels: on a CPU a fifth of SDXL-Turbo's call at 512x512."""

_FRESH_S = 600
"""Seconds for which a measurement may be the reason to refuse a request; the machine may have been busy."""

_MAX_KINDS = 256
_DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Seconds for one picture of a kind: on average, on average where it is alone in its call, and at the least."""

    mean_s: float | None = None
    alone_s: float | None = None
    least_s: float = math.inf
    at: float = -math.inf
    """Monotonic time of the newest measurement."""


class CostModel:
    """Seconds that requests take. The device thread calls `learn`; any thread may call the other methods.

    Args:
        work: The work of a picture, in any unit, for kinds that have no measurements.
        size: (width, height) in pixels of the reference picture: the first warm-up size.
        first_call_is_slow: Whether the first call of a kind is not to be measured, as it may compile.
    """

    def __init__(
        self,
        work: Callable[[GenerationParams], float],
        *,
        size: tuple[int, int] | None = None,
        first_call_is_slow: bool = False,
    ) -> None:
        self._work = work
        self.reference = sample_pictures(Mode.TXT2IMG, size or _DEFAULT_SIZE, 1)
        self._default = sample_pictures(Mode.TXT2IMG, _DEFAULT_SIZE, 1)
        self._first_call_is_slow = first_call_is_slow
        self._pace_s = 0.0
        self._kinds: dict[_Kind, _Measured] = {}
        self._recent_s: deque[float] = deque(maxlen=_RECENT_REQUESTS)

    def expected_s(self, request: Request) -> float:
        """Return the seconds that a request adds to the queue; 0 before the warm-up."""
        measured = self._kinds.get(_kind(request[0]))
        each_s = self._modelled_s(request[0]) if measured is None or measured.mean_s is None else measured.mean_s
        return each_s * len(request)

    def least_s(self, request: Request) -> float:
        """Return the seconds that a request takes at the least on the idle device; 0 before the warm-up.

        A kind that was not measured of late takes at least a part of the extrapolation from the reference picture. From
        a reference smaller than 512x512 the extrapolation is that from 512x512, since most of its seconds are fixed.
        """
        measured = self._kinds.get(_kind(request[0]))
        if measured is not None and measured.least_s < math.inf and time.monotonic() - measured.at < _FRESH_S:
            return measured.least_s * len(request)
        reference = self._kinds.get(_kind(self.reference[0]))
        if reference is None or reference.least_s == math.inf:
            return 0.0
        unit = max(self._work(self.reference[0]), self._work(self._default[0]))
        return _CERTAIN * reference.least_s * self._work(request[0]) / unit * len(request)

    @property
    def usual_s(self) -> float:
        """Seconds that a request adds to the queue whose pictures are not known yet: the median of the latest."""
        recent_s = tuple(self._recent_s)
        return statistics.median(recent_s) if recent_s else self.expected_s(self.reference)

    @property
    def is_stale(self) -> bool:
        """Whether the reference picture was not measured for a while."""
        return time.monotonic() - self._kinds.get(_kind(self.reference[0]), _Measured()).at >= _FRESH_S / 10

    def hang_limit_s(self, request: Request, *, hang_limit_s: float) -> float:
        """Return the seconds after which a call for these pictures counts as hung.

        A picture up to the reference's work may take `hang_limit_s`, or several times its expected seconds if that is
        more. For a larger picture `hang_limit_s` grows with its work. The gain of a batch does not count.
        """
        first = request[0]
        measured = self._kinds.get(_kind(first), _Measured())
        expected_s = max(self._modelled_s(first), measured.alone_s or 0.0)
        times = max(1.0, self._work(first) / self._work(self.reference[0]))
        return max(hang_limit_s * times, _HANG_FACTOR * expected_s) * len(request)

    def calibrate(self, measured: Sequence[tuple[GenerationParams, float]]) -> None:
        """Take single pictures of the warm-up, each with the seconds of its call, as the first measurements.

        They are in the order of the calls, and the last one sets the expectation, as first calls are slower.
        """
        for params, seconds in measured:
            known = self._kinds.get(_kind(params), _Measured())
            self._set(_kind(params), _Measured(least_s=min(known.least_s, seconds), at=time.monotonic()))
        params, seconds = measured[-1]
        self._pace_s = seconds / self._work(params)
        self._recent_s.extend([self.expected_s(self.reference)] * _PREFILLED)

    def learn(self, batch: Sequence[GenerationParams], seconds: float) -> None:
        """Update the measurements with a call that made these pictures of one kind. On the device thread."""
        kind = _kind(batch[0])
        known = self._kinds.get(kind)
        if known is None and self._first_call_is_slow:
            self._set(kind, _Measured())
            return
        known = known or _Measured()
        each_s = seconds / len(batch)
        self._set(
            kind,
            _Measured(
                mean_s=_moved(known.mean_s, each_s),
                alone_s=_moved(known.alone_s, each_s) if len(batch) == 1 else known.alone_s,
                least_s=min(known.least_s, each_s) if time.monotonic() - known.at < _FRESH_S else each_s,
                at=time.monotonic(),
            ),
        )

    def learn_usual(self, request: Request) -> None:
        """Note that a request was served. On the device thread."""
        self._recent_s.append(self.expected_s(request))

    def _modelled_s(self, params: GenerationParams) -> float:
        return self._work(params) * self._pace_s

    def _set(self, kind: _Kind, measured: _Measured) -> None:
        self._kinds[kind] = measured
        if len(self._kinds) > _MAX_KINDS:
            oldest = next(kind for kind in self._kinds if kind != _kind(self.reference[0]))
            del self._kinds[oldest]


def _kind(params: GenerationParams) -> _Kind:
    return params.mode, params.width, params.height, params.effective_steps


def _moved(mean: float | None, newest: float) -> float:
    """Return an exponentially weighted moving average (EWMA) with the newest value in it."""
    return newest if mean is None else mean + _EWMA_WEIGHT * (newest - mean)
